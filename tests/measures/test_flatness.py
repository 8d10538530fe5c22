"""Relative flatness against Hessians, naive transcriptions and decimals of hundreds of digits."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal, localcontext

import pytest
import torch
from cases import HEADS, Head, make_head
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from grokscope.measures.flatness import (
    published_grokking_flatness,
    relative_flatness,
    relative_flatness_bound,
)
from grokscope.measures.row_variance import (
    pairwise_row_variance,
    row_variance,
    streamed_row_variance,
)


def hessian_of_cross_entropy(head: Head) -> Tensor:
    """Full Hessian of the mean loss with respect to the weight, ``[C, d, C, d]``, by autograd."""

    def loss(weight: Tensor) -> Tensor:
        return cross_entropy(head.features @ weight.mT + head.bias, head.labels)

    hessian = torch.autograd.functional.hessian(loss, head.weight)
    assert isinstance(hessian, Tensor)
    return hessian


def kappa_by_definition(head: Head) -> float:
    """Sum over pairs of rows of their inner product times the trace of their Hessian block."""
    hessian = hessian_of_cross_entropy(head)
    classes = len(head.weight)
    total = 0.0
    for s in range(classes):
        for t in range(classes):
            trace = hessian[s, :, t, :].diagonal().sum()
            total += float(head.weight[s] @ head.weight[t] * trace)
    return total


def decimals(tensor: Tensor) -> list:
    """Exact decimals of a tensor of one or two axes."""
    return [[Decimal(x) for x in row] if isinstance(row, list) else Decimal(row)
            for row in tensor.tolist()]  # fmt: skip


def kappa_in_decimals(features: Tensor, logits: Tensor, weight: Tensor) -> Decimal:
    """The textbook formula, sum p |w|^2 - |sum p w|^2, with digits to spare."""
    with localcontext() as context:
        context.prec = 700
        rows, total = decimals(weight), Decimal(0)
        for phi, z in zip(decimals(features), decimals(logits), strict=True):
            exps = [x.exp() for x in z]
            p = [x / sum(exps) for x in exps]
            mean = [
                sum(q * row[j] for q, row in zip(p, rows, strict=True)) for j in range(len(phi))
            ]
            second = sum(q * sum(x * x for x in row) for q, row in zip(p, rows, strict=True))
            total += sum(x * x for x in phi) * (second - sum(x * x for x in mean))
        return total / len(features)


def gini_in_decimals(z: list) -> Decimal:
    with localcontext() as context:
        context.prec = 700
        exps = [x.exp() for x in z]
        return 1 - sum((x / sum(exps)) ** 2 for x in exps)


def saturated(gap: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Two examples whose best logit leads by ``gap``, features and rows of order one."""
    head = make_head(examples=2, classes=5, width=3, seed=7)
    logits = torch.tensor([[0.0, gap, -1, 0.5, -3], [gap, -2, -0.25, -1, 0]], dtype=dtype)
    return head.features.to(dtype), logits, head.weight.to(dtype)


# Definition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_kappa_is_the_double_sum_over_blocks_of_the_autograd_hessian(head):
    kappa = relative_flatness(head.features, head.logits, head.weight)
    # The definition itself loses digits when rows share an offset; kappa does not.
    assert float(kappa) == pytest.approx(kappa_by_definition(head), rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    examples=integers(1, 5),
    classes=integers(2, 5),
    width=integers(1, 4),
    scale=floats(0.01, 4),
    seed=integers(0, 10_000),
)
def test_kappa_of_any_head_is_that_of_its_hessian(examples, classes, width, scale, seed):
    head = make_head(examples, classes, width, scale, seed=seed)
    kappa = relative_flatness(head.features, head.logits, head.weight)
    assert float(kappa) == pytest.approx(kappa_by_definition(head), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("head", HEADS)
def test_the_bound_is_the_weight_norm_times_the_trace_of_the_hessian(head):
    size = head.weight.numel()
    trace = hessian_of_cross_entropy(head).reshape(size, size).trace()
    bound = relative_flatness_bound(head.features, head.logits, head.weight)
    torch.testing.assert_close(bound, head.weight.square().sum() * trace, rtol=1e-9, atol=1e-12)
    kappa = relative_flatness(head.features, head.logits, head.weight)
    assert kappa <= bound * (1 + 1e-12) + 1e-15


@pytest.mark.parametrize("head", HEADS)
def test_the_published_penalty_is_what_the_papers_code_computes(head):
    published = relative_flatness_bound(
        head.features, head.logits, head.weight, temperature=2.0, normalize_features=True
    )
    probs = torch.softmax(head.logits / 2.0, dim=1)
    unit = normalize(head.features, dim=1)
    traces = (probs * (1 - probs)).sum(dim=1) * (unit**2).sum(dim=1)
    torch.testing.assert_close(published, torch.norm(head.weight) ** 2 * traces.mean())


def test_the_grokking_value_is_the_product_of_two_softmax_inputs():
    first, second = make_head(seed=1), make_head(seed=2)
    features = torch.stack([first.features, second.features], dim=1)
    logits = torch.stack([first.logits, second.logits], dim=1)
    expected = 0.0
    for i in range(len(features)):
        probs = torch.softmax(first.logits[i] * second.logits[i], dim=0)
        both = torch.cat([first.features[i], second.features[i]])
        expected += (1 - (probs**2).sum()) * (both**2).sum() / len(features)
    expected *= torch.trace(first.weight @ first.weight.mT)
    torch.testing.assert_close(
        published_grokking_flatness(features, logits, first.weight), expected
    )


def test_a_collapsed_head_has_the_flatness_of_the_lemma():
    # Simplex rows times lambda, class means as features: p has one value e and C - 1 others o,
    # and rows lie at squared distance 2 lambda^2 C / (C - 1).
    classes, scale = 7, 3.0
    means = (torch.eye(classes, dtype=torch.float64) - 1 / classes) * (
        classes / (classes - 1)
    ) ** 0.5
    weight = scale * means
    logits = means @ weight.mT
    gap = torch.tensor(scale * classes / (classes - 1), dtype=torch.float64)
    o = (-gap).exp() / (1 + (classes - 1) * (-gap).exp())
    e = 1 - (classes - 1) * o
    distance = 2 * scale**2 * classes / (classes - 1)
    expected = distance * ((classes - 1) * e * o + (classes - 1) * (classes - 2) / 2 * o**2)
    torch.testing.assert_close(relative_flatness(means, logits, weight), expected)


# Invariance ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(shift=floats(-100, 100), seed=integers(0, 1000))
def test_adding_one_vector_to_all_rows_leaves_kappa_unchanged(shift, seed):
    head = make_head(seed=seed)
    moved = head.weight + shift * torch.linspace(-1, 1, 4, dtype=torch.float64)
    before = relative_flatness(head.features, head.logits, head.weight)
    after = relative_flatness(head.features, head.features @ moved.mT + head.bias, moved)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)


def test_the_bound_does_change_when_a_vector_is_added_to_all_rows():
    head = make_head()
    bounds = [
        relative_flatness_bound(head.features, head.logits, head.weight + shift)
        for shift in (0, 10)
    ]
    assert bounds[1] > 10 * bounds[0]


@given(scale=floats(1e-3, 1e3))
def test_moving_scale_between_features_and_head_changes_nothing(scale):
    head = make_head()
    for measure in (relative_flatness, relative_flatness_bound):
        before = measure(head.features, head.logits, head.weight)
        after = measure(head.features / scale, head.logits, head.weight * scale)
        torch.testing.assert_close(after, before, rtol=1e-10, atol=0)


@pytest.mark.parametrize("head", HEADS)
def test_rotating_features_and_permuting_classes_changes_nothing(head):
    generator = torch.Generator().manual_seed(3)
    width, classes = head.weight.shape[1], head.weight.shape[0]
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    order = torch.randperm(classes, generator=generator)
    for measure in (relative_flatness, relative_flatness_bound):
        before = measure(head.features, head.logits, head.weight)
        after = measure(
            head.features @ rotation, head.logits[:, order], (head.weight @ rotation)[order]
        )
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("head", HEADS)
def test_reductions_agree_with_one_example_at_a_time(head):
    for measure in (relative_flatness, relative_flatness_bound):
        alone = torch.stack(
            [
                measure(head.features[i : i + 1], head.logits[i : i + 1], head.weight)
                for i in range(len(head.features))
            ]
        )
        arguments = (head.features, head.logits, head.weight)
        torch.testing.assert_close(measure(*arguments, reduction="none"), alone)
        torch.testing.assert_close(measure(*arguments, reduction="sum"), alone.sum())
        torch.testing.assert_close(measure(*arguments), alone.mean())


# Precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0, 60.0, 85.0])
@pytest.mark.parametrize("variance", [pairwise_row_variance, streamed_row_variance])
def test_float32_keeps_its_digits_where_the_softmax_is_saturated(gap, variance):
    features, logits, weight = saturated(gap, torch.float32)
    kappa = (features.square().sum(dim=-1) * variance(logits, weight)).mean()
    truth = kappa_in_decimals(features, logits, weight)
    assert kappa.dtype == torch.float32
    assert abs(Decimal(float(kappa)) / truth - 1) < Decimal("2e-5")
    bound = relative_flatness_bound(features, logits, weight, reduction="none")
    norm = sum(x * x for row in decimals(weight) for x in row)
    for value, phi, z in zip(bound.tolist(), decimals(features), decimals(logits), strict=True):
        expected = norm * sum(x * x for x in phi) * gini_in_decimals(z)
        assert abs(Decimal(value) / expected - 1) < Decimal("2e-5")


@pytest.mark.parametrize("gap", [90.0, 100.0])
def test_beyond_the_smallest_normal_number_float32_loses_digits_but_not_the_sign(gap):
    features, logits, weight = saturated(gap, torch.float32)
    kappa = relative_flatness(features, logits, weight)
    truth = kappa_in_decimals(features, logits, weight)
    assert kappa > 0
    assert abs(Decimal(float(kappa)) / truth - 1) < Decimal("0.2")


@pytest.mark.parametrize("gap", [90.0, 300.0, 650.0])
@pytest.mark.parametrize("variance", [pairwise_row_variance, streamed_row_variance])
def test_float64_keeps_its_digits_far_beyond(gap, variance):
    features, logits, weight = saturated(gap, torch.float64)
    kappa = (features.square().sum(dim=-1) * variance(logits, weight)).mean()
    truth = kappa_in_decimals(features, logits, weight)
    assert abs(Decimal(float(kappa)) / truth - 1) < Decimal("1e-12")


@pytest.mark.parametrize("variance", [pairwise_row_variance, streamed_row_variance])
def test_gradients_in_float32_keep_their_digits_where_the_softmax_is_saturated(variance):
    wide = [t.double().requires_grad_() for t in saturated(60.0, torch.float32)[1:]]
    narrow = [t.requires_grad_() for t in saturated(60.0, torch.float32)[1:]]
    # Truth: the sum over pairs by differences, nothing shared with the code under test.
    probs = wide[0].softmax(dim=-1)
    gaps = (wide[1][:, None] - wide[1][None]).square().sum(dim=-1)
    truth = torch.einsum("nc,ck,nk->n", probs, gaps, probs) / 2
    for got, expected in zip(
        torch.autograd.grad(variance(*narrow).sum(), narrow),
        torch.autograd.grad(truth.sum(), wide),
        strict=True,
    ):
        torch.testing.assert_close(got.double(), expected, rtol=3e-5, atol=1e-35)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    head = make_head(scale=3.0)
    half = [t.to(dtype) for t in (head.features, head.logits, head.weight)]
    for measure in (relative_flatness, relative_flatness_bound):
        value = measure(*half)
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), measure(*(t.double() for t in half)), rtol=1e-5, atol=0
        )


def test_autocast_does_not_lower_the_precision():
    head = make_head(examples=20, classes=30, width=8, scale=3.0)
    arguments = [t.float() for t in (head.features, head.logits, head.weight)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relative_flatness(*arguments)
    torch.testing.assert_close(inside, relative_flatness(*arguments), rtol=0, atol=0)


# Chunks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 1000, None])
@pytest.mark.parametrize("head", HEADS)
def test_streaming_over_classes_equals_all_pairs(head, chunk):
    streamed = streamed_row_variance(head.logits, head.weight, chunk)
    torch.testing.assert_close(
        streamed, pairwise_row_variance(head.logits, head.weight), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("classes", [256, 257])
def test_kappa_is_the_same_on_both_sides_of_the_switch_to_streaming(classes):
    head = make_head(examples=3, classes=classes, width=4)
    probs = head.logits.softmax(dim=-1)
    mean = probs @ head.weight
    textbook = (probs * head.weight.square().sum(dim=-1)).sum(dim=-1) - mean.square().sum(dim=-1)
    torch.testing.assert_close(row_variance(head.logits, head.weight), textbook)


@pytest.mark.parametrize(
    "variance", [pairwise_row_variance, lambda z, w: streamed_row_variance(z, w, chunk=2)]
)
def test_first_and_second_derivatives_are_exact(variance):
    head = make_head(examples=3, classes=5, width=2)
    arguments = (head.logits.requires_grad_(), head.weight.clone().requires_grad_())
    assert torch.autograd.gradcheck(variance, arguments)
    assert torch.autograd.gradgradcheck(variance, arguments)


@pytest.mark.parametrize("measure", [relative_flatness, relative_flatness_bound])
def test_the_measures_are_differentiable_twice_in_all_their_tensors(measure):
    head = make_head(examples=3, classes=4, width=2)
    arguments = tuple(
        t.detach().clone().requires_grad_() for t in (head.features, head.logits, head.weight)
    )
    assert torch.autograd.gradcheck(measure, arguments)
    assert torch.autograd.gradgradcheck(measure, arguments)


@pytest.mark.parametrize("classes", [4, 300])
def test_many_heads_at_once_give_the_gradients_of_each_alone(classes):
    heads = [make_head(classes=classes, seed=seed) for seed in range(3)]

    def penalty(weight: Tensor, features: Tensor) -> Tensor:
        return relative_flatness(features, features @ weight.mT, weight)

    weights = torch.stack([head.weight for head in heads])
    features = torch.stack([head.features for head in heads])
    together = torch.func.vmap(torch.func.grad(penalty))(weights, features)
    for head, gradient in zip(heads, together, strict=True):
        weight = head.weight.clone().requires_grad_()
        (alone,) = torch.autograd.grad(penalty(weight, head.features), weight)
        torch.testing.assert_close(gradient, alone)


@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("batched", [0, 1])
def test_only_one_of_the_inputs_may_be_batched(classes, wanted, batched):
    heads = [make_head(classes=classes, seed=seed) for seed in range(2)]
    stacks = torch.stack([(h.logits, h.weight)[batched] for h in heads])
    shared = (heads[0].logits, heads[0].weight)[1 - batched]
    axes = (0, None) if batched == 0 else (None, 0)
    gradient = torch.func.grad(lambda z, w: row_variance(z, w).sum(), argnums=wanted)
    arguments = (stacks, shared) if batched == 0 else (shared, stacks)
    together = torch.func.vmap(gradient, in_dims=axes)(*arguments)
    for one, got in zip(stacks, together, strict=True):
        alone = (one, shared) if batched == 0 else (shared, one)
        torch.testing.assert_close(got, gradient(*alone))


MEMORY = """
import re, torch
from pathlib import Path
from grokscope.measures.flatness import relative_flatness
torch.manual_seed(0)
weight = torch.randn(50_000, 768)
features = torch.randn(8, 768)
logits = features @ weight.mT / 10
for tensor in (weight, features, logits): tensor.requires_grad_()
relative_flatness(features[:, :4].detach(), logits[:, :400].detach(), weight[:400, :4].detach())
logits = logits.detach().requires_grad_()
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
relative_flatness(features, logits, weight).backward()
print((peak() - before) / 1024)
"""


def test_fifty_thousand_classes_need_a_few_hundred_megabytes_gradients_included():
    run = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=120
    )
    # The gradient of the weight alone has 146 MiB; all pairs of rows would need 10,000.
    assert float(run.stdout) < 400
