"""Many networks measured at once, against `measure_tensors` of each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.measures.checks import NotFiniteError
from grokscope.probe import Measurement, measure_tensors
from grokscope.probe.assembly import Assembly
from grokscope.probe.choice import choose
from grokscope.probe.trees import Block, Heads


class Networks:
    """Some heads with what they saw and said.

    Args:
        networks, examples, classes, width: Sizes.
        bias: Whether the heads have one.
        fit: How far features stand out along the row of their class: from about 3 on they are fit.
        dtype: Of features and logits.
    """

    def __init__(
        self,
        networks: int = 4,
        examples: int = 90,
        classes: int = 6,
        width: int = 8,
        bias: bool = True,
        fit: float = 1.0,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.labels = torch.randint(classes, (networks, examples), generator=generator)
        self.weight = normal(networks, classes, width)
        self.bias = normal(networks, classes) if bias else None
        rows = self.labels[..., None].expand(-1, -1, width)
        self.features = (normal(networks, examples, width) + fit * self.weight.gather(1, rows)).to(
            dtype
        )
        self.say()

    def say(self) -> None:
        """Logits of the present features."""
        offsets = 0 if self.bias is None else self.bias[:, None]
        logits = self.features.float() @ self.weight.mT + offsets
        self.logits = logits.to(self.features.dtype)

    def together(self, references=None, parts: int = 1) -> list[Measurement | NotFiniteError]:
        tensors = (self.features, self.logits, self.labels)
        heads = Heads(self.weight, self.bias)
        assembly = Assembly(heads, choose(None, {}), references=references)
        for block in zip(*(each.chunk(parts, dim=1) for each in tensors), strict=True):
            assembly.add(Block(*block))
        return assembly.finish()

    def alone(self, place: int, reference=None) -> Measurement:
        head = nn.Linear(self.weight.shape[2], self.weight.shape[1], bias=self.bias is not None)
        with torch.no_grad():
            head.weight.copy_(self.weight[place])
            if self.bias is not None:
                head.bias.copy_(self.bias[place])
        own = (each[place] for each in (self.features, self.logits, self.labels))
        return measure_tensors(*own, head, reference=reference)


# Computed in the dtype of the features, and what comes of that.
ROUGH = ("feature_robustness", "representativeness", "representativeness_kde")


def assert_same(own: Measurement, expected: Measurement) -> None:
    assert list(own) == list(expected)
    assert (own.examples, own.left_out) == (expected.examples, expected.left_out)
    for name, value in expected.items():
        rounding = {"rel": 1e-5, "abs": 1e-6} if name in ROUGH else {"rel": 1e-10, "abs": 1e-13}
        assert own[name] == pytest.approx(value, nan_ok=True, **rounding), name
    kernel = pytest.approx(expected.kernel_robustness, rel=1e-5, abs=1e-6, nan_ok=True)
    assert own.kernel_robustness == kernel
    for name in ("count", "mean", "within"):
        ours, theirs = getattr(own.moments, name), getattr(expected.moments, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert ours.device.type == "cpu"


def check(networks: Networks, held_out: Networks | None = None, parts: int = 1):
    """Measure at once and alone, with held-out data after training data."""
    measured = networks.together(parts=parts)
    for place, own in enumerate(measured):
        assert_same(own, networks.alone(place))
    if held_out is not None:
        for place, own in enumerate(held_out.together(measured, parts=parts)):
            assert "generalisation_gap" in own
            assert_same(own, held_out.alone(place, measured[place]))
    return measured


CASES = {
    "plain": {},
    "no bias": {"bias": False},
    "one network": {"networks": 1},
    "bfloat16": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
    "more classes than pairs are compared of": {"classes": 300, "examples": 700, "width": 3},
    "classes with one example, and none": {"classes": 40, "examples": 60},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_network_has_the_measures_it_has_alone(case):
    held_out = Networks(**case)
    held_out.features = held_out.features.flip(1) * 1.1
    held_out.say()
    check(Networks(**case), held_out, parts=3)


def test_networks_that_fit_are_matched_in_confidence_beside_those_that_do_not():
    networks = Networks(networks=5, width=60, fit=3.0)
    for place, scale in enumerate((1.0, 20.0, 0.02, 1.0, 3.0)):
        networks.weight[place] *= scale
        networks.bias[place] *= scale
    networks.labels[3] = networks.labels[3].roll(1)  # a network that is wrong
    networks.say()
    measured = check(networks)
    assert [("matched_temperature" in own) for own in measured].count(False) == 1
    temperatures = [own.numbers.get("matched_temperature") for own in measured]
    assert temperatures[3] is None
    assert temperatures[1] == pytest.approx(20 * temperatures[0], rel=0.5)


def test_a_network_that_is_too_sure_of_a_wrong_answer_has_no_match():
    networks = Networks(networks=2, examples=100, classes=2, width=2, bias=False)
    networks.labels = networks.logits.argmax(dim=-1)
    networks.features *= 0.1
    networks.features[0, 0] *= 1e4
    networks.say()
    networks.labels[0, 0] = 1 - networks.labels[0, 0]
    sure, fine = check(networks)
    assert (sure["accuracy"], fine["accuracy"]) == (0.99, 1.0)
    assert "matched_temperature" not in sure
    assert "matched_temperature" in fine


def test_networks_whose_data_have_other_classes_are_measured_in_their_own():
    networks, held_out = Networks(), Networks(seed=1)
    networks.labels[0][networks.labels[0] == 2] = 1  # no 2
    networks.labels[1, :] = 4  # one class alone
    networks.labels[2] = torch.arange(90).clamp(max=5)  # one example each, but of the last
    held_out.labels[3, :] = 0
    measured = check(networks, held_out)
    assert "ncc" not in measured[1]
    assert "ncc_unbiased" not in measured[2]
    assert "ncc_unbiased" in measured[3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["features", "logits"])
@pytest.mark.parametrize(("broken", "row"), [(2, 5), (0, 0)])
def test_a_network_that_is_not_finite_says_so_and_touches_no_other(broken, row, where, value):
    networks = Networks()
    networks.labels[networks.labels == 2] = 1  # also not what classes without examples have
    getattr(networks, where)[broken, row, 1] = value
    measured = networks.together()
    assert isinstance(measured[broken], NotFiniteError)
    with pytest.raises(NotFiniteError):
        networks.alone(broken)
    for place in {0, 1, 2, 3} - {broken}:
        assert_same(measured[place], networks.alone(place))


@pytest.mark.parametrize("elements", [100, 1500, 2500])
def test_little_memory_means_few_networks_and_few_examples_at_a_time(monkeypatch, elements):
    monkeypatch.setattr("grokscope.probe.assembly.TOGETHER", elements)
    monkeypatch.setattr("grokscope.probe.assembly.ELEMENTS", elements)
    monkeypatch.setattr("grokscope.measures.pieces.CHUNK_ELEMENTS", elements)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float64:
                sizes.append(result.numel())
            return result

    with Watch():
        networks = Networks()
        measured = networks.together(networks.together())
    for place, own in enumerate(measured):
        assert_same(own, networks.alone(place, networks.alone(place)))
    # Not below what one network needs at once: 90 examples by 8.
    assert max(sizes) <= max(elements, 720)


def kernels(function) -> tuple[int, int]:
    """Operations that a GPU would be sent, and how often the host waits for it."""
    counts = [0, 0]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name()
            counts[0] += not func.is_view
            counts[1] += "_local_scalar_dense" in name or "nonzero" in name
            return func(*args, **(kwargs or {}))

    with Count():
        function()
    return counts[0], counts[1]


def test_thirty_networks_cost_no_more_kernels_and_waits_than_one():
    """Of each network a few numbers are looked at on the host: that is all that grows."""
    alone, _ = kernels(lambda: Networks(networks=1, fit=3.0).alone(0))
    thirty, waits = kernels(Networks(networks=30, fit=3.0).together)
    sixty, waits_of_sixty = kernels(Networks(networks=60, fit=3.0).together)
    assert thirty < 1.2 * alone
    assert sixty - thirty < 30 * 40
    assert waits_of_sixty - waits < 30 * 4
