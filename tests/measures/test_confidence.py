"""Confidence against decimals, naive transcriptions and other solvers."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from cases import HEADS, make_head
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from scipy.optimize import brentq, minimize_scalar
from torch.nn.functional import cross_entropy

from grokscope.measures.confidence import entropy, gini, logit_scale, margin
from grokscope.measures.flatness import relative_flatness
from grokscope.measures.matched import matched_temperature, relative_flatness_at_temperature


def probabilities_in_decimals(logits: list[float]) -> list[Decimal]:
    exps = [Decimal(z).exp() for z in logits]
    return [x / sum(exps) for x in exps]


@pytest.mark.parametrize("gap", [0.0, 1.0, 16.0, 40.0, 80.0])
def test_entropy_and_gini_in_float32_keep_their_digits_when_saturated(gap):
    logits = torch.tensor([[gap, 0.0, -1.0, 0.25]])
    with localcontext() as context:
        context.prec = 120
        p = probabilities_in_decimals(logits[0].tolist())
        expected_entropy = -sum(q * q.ln() for q in p)
        expected_gini = 1 - sum(q * q for q in p)
    assert abs(Decimal(float(entropy(logits))) / expected_entropy - 1) < Decimal("2e-5")
    assert abs(Decimal(float(gini(logits))) / expected_gini - 1) < Decimal("2e-5")


@pytest.mark.parametrize("head", HEADS)
def test_measures_equal_their_naive_transcriptions(head):
    probs = head.logits.softmax(dim=-1)
    torch.testing.assert_close(
        entropy(head.logits, "none"), torch.distributions.Categorical(probs).entropy()
    )
    torch.testing.assert_close(gini(head.logits, "none"), 1 - probs.square().sum(dim=-1))
    torch.testing.assert_close(
        logit_scale(head.logits, "none"), head.logits.std(dim=-1, unbiased=False)
    )
    margins = []
    for z, label in zip(head.logits.tolist(), head.labels.tolist(), strict=True):
        margins.append(z[label] - max(x for c, x in enumerate(z) if c != label))
    expected = torch.tensor(margins, dtype=torch.float64)
    torch.testing.assert_close(margin(head.logits, head.labels, "none"), expected)
    torch.testing.assert_close(margin(head.logits, head.labels), expected.mean())
    torch.testing.assert_close(margin(head.logits, head.labels, "sum"), expected.sum())


def test_a_uniform_softmax_has_the_largest_entropy_and_gini():
    logits = torch.full((3, 8), 5.0, dtype=torch.float64)
    assert float(entropy(logits)) == pytest.approx(math.log(8), rel=1e-14)
    assert float(gini(logits)) == pytest.approx(7 / 8, rel=1e-14)
    assert float(logit_scale(logits)) == 0.0


@given(shift=floats(-50, 50), temperature=floats(0.1, 10))
def test_shifts_of_logits_change_nothing_and_a_temperature_divides_the_scale(shift, temperature):
    head = make_head()
    moved = head.logits + shift
    for measure in (entropy, gini, logit_scale):
        torch.testing.assert_close(measure(moved), measure(head.logits))
    torch.testing.assert_close(
        logit_scale(moved / temperature) * temperature, logit_scale(head.logits)
    )
    torch.testing.assert_close(
        margin(moved / temperature, head.labels) * temperature, margin(head.logits, head.labels)
    )


@pytest.mark.parametrize("measure", [entropy, gini, logit_scale])
def test_confidence_can_be_a_penalty(measure):
    logits = make_head(examples=3, classes=4).logits.requires_grad_()
    assert torch.autograd.gradcheck(measure, logits)
    assert torch.autograd.gradgradcheck(measure, logits)
    (gradient,) = torch.autograd.grad(
        measure(torch.zeros(2, 3, requires_grad=True) * logits[:2, :3]), logits
    )
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    head = make_head()
    logits = head.logits.to(dtype)
    for measure in (entropy, gini, logit_scale):
        assert measure(logits).dtype == torch.float32
        torch.testing.assert_close(measure(logits).double(), measure(logits.double()))
    torch.testing.assert_close(
        margin(logits, head.labels).double(), margin(logits.double(), head.labels)
    )


# Matched temperature --------------------------------------------------------------------------


def loss_at(logits, labels, temperature):
    return float(cross_entropy(logits / temperature, labels))


@settings(max_examples=60, deadline=None)
@given(
    seed=integers(0, 10_000),
    classes=integers(2, 12),
    wrong=integers(0, 4),
    share=floats(0.02, 0.98),
    size=floats(1e-3, 1e3),
)
def test_the_matched_temperature_gives_the_target_loss(seed, classes, wrong, share, size):
    head = make_head(examples=20, classes=classes, seed=seed)
    logits = head.logits * size
    labels = logits.argmax(dim=-1)
    labels[:wrong] = head.labels[:wrong]
    # An independent minimiser says what can be reached, and on which side of it to look.
    lowest = minimize_scalar(
        lambda x: loss_at(logits, labels, size * math.exp(x)),
        bounds=(-7, 7), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    target = lowest.fun + share * (math.log(classes) - lowest.fun)
    expected = brentq(
        lambda x: loss_at(logits, labels, size * math.exp(x)) - target, lowest.x, 40, xtol=1e-14
    )
    temperature = matched_temperature(logits, labels, target)
    assert loss_at(logits, labels, temperature) == pytest.approx(target, rel=1e-9)
    assert math.log(temperature / size) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("target", [1e-3, 1e-12, 1e-100])
def test_tiny_losses_are_matched_exactly(target):
    # Two classes with logits m and 0: ln(1 + exp(-m / T)) = target has a closed solution.
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    expected = -3.0 / math.log(math.expm1(target))
    temperature = matched_temperature(logits, torch.tensor([0, 1]), target)
    assert temperature == pytest.approx(expected, rel=1e-9)


def test_a_network_already_at_the_target_has_temperature_one():
    head = make_head(examples=50, classes=5, scale=3.0)
    labels = head.logits.argmax(dim=-1)
    target = loss_at(head.logits, labels, 1.0)
    assert matched_temperature(head.logits, labels, target) == pytest.approx(1.0, rel=1e-9)


def test_matching_takes_few_passes(monkeypatch):
    from grokscope.measures import matched

    passes = []
    curve = matched._LossCurve.__call__
    monkeypatch.setattr(
        matched._LossCurve, "__call__", lambda self, b: passes.append(b) or curve(self, b)
    )
    head = make_head(examples=500, classes=20, width=30)
    labels = head.logits.argmax(dim=-1)
    labels[:5] = 0
    matched_temperature(head.logits, labels, 0.4)
    matched_temperature(head.logits, head.logits.argmax(dim=-1), 1e-6)
    assert len(passes) < 60


def test_an_unreachable_loss_is_refused_with_the_smallest_that_can_be_reached():
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1])
    # At best the softmax says 3/4 everywhere: the entropy of (3/4, 1/4), where 4 / T = ln 3.
    best = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    with pytest.raises(
        ValueError, match=rf"{best:.6g}, at temperature {4 / math.log(3):.6g}.*0\.75"
    ):
        matched_temperature(logits, labels, 0.9 * best)
    assert matched_temperature(logits, labels, best * (1 + 1e-6)) > 4 / math.log(3)


def test_logits_that_know_nothing_are_refused():
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    with pytest.raises(ValueError, match="0.693147, at infinite temperature.*accuracy of 0.0000"):
        matched_temperature(logits, torch.tensor([1, 0]), 0.5)


def test_ties_bound_the_loss_from_below():
    logits = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="0.346574, as the temperature goes to 0"):
        matched_temperature(logits, torch.tensor([0, 0]), 0.3)
    assert matched_temperature(logits, torch.tensor([0, 0]), 0.35) > 0


# Flatness at a temperature ----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("head", HEADS)
def test_it_is_the_flatness_of_the_rescaled_network(head, temperature):
    weight, bias = head.weight / temperature, head.bias / temperature
    expected = relative_flatness(head.features, head.features @ weight.mT + bias, weight)
    got = relative_flatness_at_temperature(head.features, head.logits, head.weight, temperature)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-14)


def test_networks_that_differ_by_confidence_only_are_equally_flat_at_matched_loss():
    head = make_head(examples=40, classes=4)
    labels = head.logits.argmax(dim=-1)
    matched, plain = [], []
    for factor in (1.0, 20.0):
        logits, weight = factor * head.logits, factor * head.weight
        temperature = matched_temperature(logits, labels, 0.4)
        matched.append(relative_flatness_at_temperature(head.features, logits, weight, temperature))
        plain.append(relative_flatness(head.features, logits, weight))
    torch.testing.assert_close(matched[0], matched[1], rtol=1e-8, atol=0)
    assert not torch.isclose(plain[0], plain[1], rtol=0.5)


# Errors ------------------------------------------------------------------------------------------

LOGITS = make_head().logits
LABELS = make_head().labels


@pytest.mark.parametrize("measure", [entropy, gini, logit_scale])
def test_wrong_logits_are_refused(measure):
    for logits, message in [
        (LOGITS[0], "logits must have shape"),
        (LOGITS[:, :1], "at least two"),
        (LOGITS[:0], "must not be empty"),
        (LOGITS.long(), "floating dtype"),
        (LOGITS * float("nan"), "18 NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure(logits)
    with pytest.raises(ValueError, match="reduction"):
        measure(LOGITS, "max")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS + 3, r"labels must lie in \[0, 2\]"),
        (LABELS - 100, "drop ignored examples"),
        (LABELS[:4], "labels has 4 entries for 6 examples"),
        (LABELS.double(), "integer dtype"),
        (LABELS[:, None], "labels must have shape"),
        (LABELS[:0], "labels must not be empty"),
        ([0, 1, 2], "labels must be a torch.Tensor"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        margin(LOGITS, labels)
    with pytest.raises(ValueError, match=message):
        matched_temperature(LOGITS, labels, 0.5)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.log(3), 5.0])
def test_wrong_target_losses_are_refused(target):
    with pytest.raises(ValueError, match="target_loss must be"):
        matched_temperature(LOGITS, LABELS, target)


@pytest.mark.parametrize("temperature", [0.0, -2.0, math.inf])
def test_wrong_temperatures_are_refused(temperature):
    head = make_head()
    with pytest.raises(ValueError, match="temperature must be positive"):
        relative_flatness_at_temperature(head.features, head.logits, head.weight, temperature)
