"""Penalties: their gradients against finite differences, their values against the measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from grokscope.interventions import Penalty
from grokscope.interventions.penalties import (
    empty_memory,
    penalty_value,
    remember_means,
    with_memory,
)
from grokscope.measures import Batch, ClassMoments, ncc, records

OF_THE_PAPER = Penalty(
    measure="relative_flatness_bound", weight=-1e-2, temperature=2.0, normalize_features=True
)
DIFFERENTIABLE = [name for name, record in records().items() if record.is_penalty]
PENALTIES = [*(Penalty(measure=name, weight=-1.0) for name in DIFFERENTIABLE), OF_THE_PAPER]
moments_of = ClassMoments.from_batch


def batch(seed: int = 0, examples: int = 12, classes: int = 3, width: int = 4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(examples, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(examples) % classes
    return features, weight, labels


@pytest.mark.parametrize(
    "penalty", PENALTIES, ids=lambda each: f"{each.measure}-{each.temperature}"
)
def test_the_gradient_of_a_penalty_is_its_slope(penalty):
    features, weight, labels = batch()

    def value(features: Tensor, weight: Tensor) -> Tensor:
        return penalty_value(penalty, Batch(features, features @ weight.T, labels, weight))

    inputs = (features.requires_grad_(), weight.requires_grad_())
    assert gradcheck(value, inputs, eps=1e-6, atol=1e-6)


def test_the_published_penalty_is_a_weight_norm_times_a_confidence():
    features, weight, labels = batch()
    logits = features @ weight.T
    probs = (logits / 2).softmax(-1)
    by_hand = weight.square().sum() * (1 - probs.square().sum(-1)).mean()
    value = penalty_value(OF_THE_PAPER, Batch(features, logits, labels, weight))
    torch.testing.assert_close(value, by_hand)
    ceiling = weight.square().sum() * (1 - 1 / 3)
    flat = penalty_value(OF_THE_PAPER, Batch(features, 0 * logits, labels, weight))
    torch.testing.assert_close(flat, ceiling)


def test_your_own_measure_is_a_penalty_too(tmp_path):
    (tmp_path / "own.py").write_text(
        "def length(features, logits, labels, weight):\n    return features.square().mean()\n"
        "def wrong(features, logits, labels, weight):\n    return 3.0\n"
    )
    features, weight, labels = batch()
    own = Penalty(measure=f"{tmp_path / 'own.py'}:length", weight=1.0)
    assert own.name == "penalty_length"
    value = penalty_value(own, Batch(features, features @ weight.T, labels, weight))
    torch.testing.assert_close(value, features.square().mean())
    wrong = Penalty(measure=f"{tmp_path / 'own.py'}:wrong", weight=1.0)
    with pytest.raises(ValueError, match="wrong must return a scalar tensor, got float"):
        penalty_value(wrong, Batch(features, features @ weight.T, labels, weight))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "flatness"}, "'flatness' is not a measure; choose one of loss, .*of your own"),
        ({"measure": "accuracy"}, "'accuracy' can't be a penalty; choose one of"),
        ({"measure": "generalisation_gap"}, "'generalisation_gap' can't be a penalty"),
        ({"measure": "gini", "temperature": 2.0}, "belong to relative_flatness_bound, not to gini"),
        ({"measure": "gini", "memory": 0.5}, "memory belongs to ncc"),
        ({"measure": "ncc", "start": 5, "stop": 5}, "stop=5 must come after start=5"),
        ({"measure": "ncc", "memory": 1.0}, "less than 1"),
    ],
)
def test_a_penalty_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Penalty(weight=1.0, **settings)


def test_a_schedule_counts_updates_from_one():
    penalty = Penalty(measure="gini", weight=1.0, start=2, stop=4)
    assert [step for step in range(1, 7) if penalty.active(step)] == [3, 4]
    assert Penalty(measure="gini", weight=1.0).active(1)


# A memory of class means.


def naive_memory(batches, classes: int, kept: float) -> dict[int, Tensor]:
    """The exponential average, class by class and batch by batch."""
    means: dict[int, Tensor] = {}
    for features, labels in batches:
        for label in range(classes):
            rows = [row for row, own in zip(features, labels.tolist(), strict=True) if own == label]
            if not rows:
                continue
            mean = sum(rows) / len(rows)
            means[label] = kept * means[label] + (1 - kept) * mean if label in means else mean
    return means


def test_a_memory_is_an_exponential_average_of_the_classes_seen():
    batches = []
    for seed in range(6):
        features, _, labels = batch(seed, examples=5, classes=4)
        batches.append((features, (labels + seed) % 4))
    memory = empty_memory(torch.zeros(5, batches[0][0].shape[1]))
    for features, labels in batches:
        memory = remember_means(memory, moments_of(features, labels, 5), kept=0.7)
    expected = naive_memory(batches, 5, 0.7)
    for label in range(5):
        assert bool(memory[label, -1]) == (label in expected)
        if label in expected:
            torch.testing.assert_close(memory[label, :-1], expected[label])


def test_ncc_with_a_memory_is_ncc_about_the_means_remembered():
    earlier, _, labels = batch(1)
    features, weight, _ = batch(2)
    memory = remember_means(empty_memory(weight), moments_of(earlier, labels, 3), kept=0.9)
    penalty = Penalty(measure="ncc", weight=-1.0, memory=0.9)
    value = penalty_value(penalty, Batch(features, features @ weight.T, labels, weight), memory)
    old = naive_memory([(earlier, labels)], 3, 0.9)
    new = naive_memory([(features, labels)], 3, 0.9)
    means = [0.9 * old[c] + 0.1 * new[c] for c in range(3)]
    spread = [
        sum((row - means[c]).square().sum() for row in features[labels == c]) / (labels == c).sum()
        for c in range(3)
    ]
    ratios = [
        (spread[a] + spread[b]) / (2 * (means[a] - means[b]).square().sum())
        for a in range(3)
        for b in range(3)
        if a != b
    ]
    torch.testing.assert_close(value, sum(ratios) / 6)


def test_gradients_flow_through_the_batch_and_not_through_the_memory():
    earlier, _, labels = batch(1)
    features, weight, _ = batch(2)
    moments = moments_of(earlier.requires_grad_(), labels, 3)
    memory = remember_means(empty_memory(weight), moments, kept=0.9)
    assert not memory.requires_grad
    penalty = Penalty(measure="ncc", weight=-1.0, memory=0.9)

    def value(features: Tensor) -> Tensor:
        return penalty_value(penalty, Batch(features, features @ weight.T, labels, weight), memory)

    assert gradcheck(value, (features.requires_grad_(),), eps=1e-6, atol=1e-6)


def test_a_memory_takes_most_of_the_bias_out_of_small_batches():
    generator = torch.Generator().manual_seed(0)
    classes, width = 10, 64
    means = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    apart = torch.cdist(means, means).square()[~torch.eye(classes, dtype=torch.bool)]
    spread = math.sqrt(0.53 / float((1 / apart).mean()) / width)  # so that the true NCC is 0.53

    def draw():
        labels = torch.randint(0, classes, (64,), generator=generator)
        noise = torch.randn(64, width, generator=generator, dtype=torch.float64)
        return means[labels] + spread * noise, labels

    memory, plain, remembered = empty_memory(means), [], []
    for step in range(300):
        features, labels = draw()
        moments = ClassMoments.from_batch(features, labels, classes)
        if step >= 100:
            plain.append(float(ncc(moments)))
            remembered.append(float(ncc(with_memory(moments, memory, 0.95))))
        memory = remember_means(memory, moments, kept=0.95)
    assert sum(plain) / len(plain) < 0.40
    assert sum(remembered) / len(remembered) == pytest.approx(0.53, rel=0.05)
