"""Robustness at a look: a sample of the examples, moved in the same directions every time."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from grokscope.measures import robustness as module
from grokscope.measures.checks import values_are_readable
from grokscope.measures.robustness import feature_robustness, kernel_robustness, natural_delta
from grokscope.probe import measure_tensors
from grokscope.probe.assembly import Assembly
from grokscope.probe.choice import choose
from grokscope.probe.trees import Block, Heads

CPU = torch.device("cpu")


def classified(
    examples: int, width: int = 6, classes: int = 4
) -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(examples, width, generator=generator, dtype=torch.float64)
    head = nn.Linear(width, classes).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, width, generator=generator))
        logits = head(features)
    return features, logits, torch.arange(examples) % classes, head


def both(features: Tensor, logits: Tensor, labels: Tensor, head: nn.Linear) -> tuple[float, float]:
    found = measure_tensors(features, logits, labels, head)
    return found["feature_robustness"], found.kernel_robustness


def increases(data, samples: int) -> list[Tensor]:
    """Of each example, by the functions in other directions; the sphere's radius for all of it."""
    features, logits, labels, head = data
    delta = natural_delta(*features.shape)
    generator = torch.Generator().manual_seed(7)
    return [
        measure(features, logits, labels, head.weight.detach(), setting, samples, generator, "none")
        for measure, setting in ((feature_robustness, delta), (kernel_robustness, 1.0))
    ]


@pytest.mark.parametrize("sample", [None, 700])
@pytest.mark.parametrize("noise", [None, 6 * 2 * 500])
def test_it_is_that_of_all_examples_but_for_the_error_of_the_sample(monkeypatch, sample, noise):
    """Also where examples are few and many of them share a direction."""
    data = classified(20_000)
    if sample is not None:
        monkeypatch.setattr(module, "EXAMPLES", sample)
    if noise is not None:
        monkeypatch.setattr(module, "NOISE", noise)
    module._frozen_examples.cache_clear()
    number = sample or module.EXAMPLES
    for found, every in zip(both(*data), increases(data, samples=8), strict=True):
        # Between examples and directions of a pair; 1.5 for directions that are shared.
        error = 1.5 * float(every.std()) * math.sqrt(2 / number + 1 / 500 * (noise is not None))
        assert abs(found - float(every.mean())) < 4.5 * error
        assert error < 0.25 * found
    module._frozen_examples.cache_clear()


def test_few_examples_are_all_moved():
    """Another example, another value: none of 8,192 is left out."""
    data = classified(module.EXAMPLES)
    before = both(*data)
    for place in (0, 1, 4095, module.EXAMPLES - 1):
        features, logits, labels, head = data
        changed = logits.clone()
        changed[place] *= 0.5
        after = both(features, changed, labels, head)
        assert all(one != other for one, other in zip(before, after, strict=True))


def test_the_sample_is_fair_to_classes_that_follow_each_other():
    """Every tenth example of ten classes in turn would be of one class."""
    index = module._frozen_examples(10 * module.EXAMPLES, CPU)
    assert len(index) == len(index.unique()) == module.EXAMPLES
    assert torch.equal(index, index.sort().values)
    counts = (index % 10).bincount()
    assert len(counts) == 10 and counts.min() > 0.9 * module.EXAMPLES / 10
    assert set(index.tolist()) <= set(range(10 * module.EXAMPLES))


def test_directions_are_the_same_in_every_dtype_and_at_every_look():
    data = classified(300)
    wide = both(*data)
    single = both(*(t.float() if t.is_floating_point() else t for t in data[:3]), data[3].float())
    assert single == pytest.approx(wide, rel=1e-4)
    data[3].double()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert both(*data) == wide
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_drawn_once_and_the_memory_for_it_is_bounded():
    drawn = [module._frozen_noise(50, 7, torch.float32, CPU) for _ in range(2)]
    assert all(a is b for a, b in zip(*drawn, strict=True))
    assert len(drawn[0]) == module.DIRECTIONS
    for width in range(1, 40):
        module._frozen_noise(8, width, torch.float32, CPU)
    assert module._frozen_noise.cache_info().currsize <= 4
    again = module._frozen_noise(50, 7, torch.float32, CPU)
    assert all(torch.equal(a, b) for a, b in zip(again, drawn[0], strict=True))
    noise = torch.stack(module._frozen_noise(4096, 64, torch.float64, CPU))
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("width", [64, 512, 4096])
def test_wide_features_are_moved_in_fewer_directions_and_in_little_memory(width):
    features, logits, labels, head = classified(2000, width=width)
    module._frozen_noise.cache_clear()
    value = both(features.float(), logits.float(), labels, head.float())[0]
    assert value > 0
    (hit,) = [module._frozen_noise.cache_info().currsize]
    assert hit == 1
    rows = min(2000, max(module.LEAST_NOISE, module.NOISE // (2 * width)))
    before = module._frozen_noise.cache_info().hits
    noise = module._frozen_noise(rows, width, torch.float32, CPU)
    assert module._frozen_noise.cache_info().hits == before + 1
    assert sum(tensor.nbytes for tensor in noise) <= 4 * module.NOISE


def test_threads_that_look_at_once_move_in_the_same_directions():
    data = classified(500)
    expected = both(*data)
    module._frozen_noise.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: both(*data), range(16))) == {expected}


def test_noise_drawn_in_inference_mode_serves_outside_of_it():
    module._frozen_noise.cache_clear()
    data = classified(50)
    with torch.inference_mode():
        inside = both(*data)
    assert both(*data) == inside
    (noise, _) = module._frozen_noise(50, 6, torch.float64, CPU)
    assert not noise.is_inference()


def test_the_sphere_around_a_sample_is_that_of_all_examples(monkeypatch):
    """The radius falls with the number of examples, and a sample does not widen it."""
    monkeypatch.setattr(module, "EXAMPLES", 100)
    module._frozen_examples.cache_clear()
    features = torch.ones(10_000, 1, dtype=torch.float64)  # two points: nothing is left to chance
    head = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    logits, labels = features @ head.weight.detach().mT, torch.zeros(10_000).long()
    delta = 10_000 ** (-1 / 5)
    losses = [math.log1p(math.exp(-2 * (1 + sign * delta))) for sign in (1, -1, 0)]
    expected = (losses[0] + losses[1]) / 2 - losses[2]
    assert both(features, logits, labels, head)[0] == pytest.approx(expected, rel=1e-10)
    module._frozen_examples.cache_clear()


def test_noise_that_many_networks_drew_first_serves_one():
    features, logits, labels, head = classified(60)
    expected = both(features, logits, labels, head)
    module._frozen_noise.cache_clear()
    alike = (tensor[None].expand(3, *tensor.shape) for tensor in (head.weight, head.bias))
    assembly = Assembly(Heads(*alike), choose(["feature_robustness"], {}))
    assembly.add(Block(*(t[None].repeat(3, *t.dim() * [1]) for t in (features, logits, labels))))
    together = [found["feature_robustness"] for found in assembly.finish()]
    assert together == pytest.approx(3 * [expected[0]], rel=1e-9)
    (noise, _) = module._frozen_noise(60, 6, torch.float64, CPU)
    assert values_are_readable(noise)
    assert both(features, logits, labels, head) == expected
