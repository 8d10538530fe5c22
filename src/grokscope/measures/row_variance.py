r"""Variance of a head's rows under a softmax, accurate where the softmax is almost one-hot.

Axes: ``examples`` (n), ``classes`` (C), ``width`` (d).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

# Up to here all pairs of rows are compared (C * C distances); above, rows are streamed.
PAIRWISE_CLASSES = 256
# Elements of one temporary of the streamed form, in float64: 8 MiB.
CHUNK_ELEMENTS = 2**20


def row_variance(logits: Tensor, weight: Tensor) -> Tensor:
    """Variance of the rows of ``weight`` under the softmax of each example, ``[examples]``."""
    if weight.shape[0] <= PAIRWISE_CLASSES:
        return pairwise_row_variance(logits, weight)
    return streamed_row_variance(logits, weight)


def pairwise_row_variance(logits: Tensor, weight: Tensor) -> Tensor:
    r"""Variance as :math:`\frac12 p^T D p` with :math:`D_{cc'} = \|w_c - w_{c'}\|^2`.

    A sum of non-negative terms: the textbook form cancels once the softmax is nearly one-hot,
    which is exactly where we look. The relative error is a few roundings, whatever the softmax
    and however close the rows.
    """
    probs = logits.softmax(dim=-1)
    return 0.5 * ((probs @ squared_distances(weight)) * probs).sum(dim=-1)


def squared_distances(rows: Tensor) -> Tensor:
    """Squared distances between rows, ``[n, width] -> [n, n]``, accurate for rows close together.

    Taken from differences, never from inner products. Cost: O(n^2 * width).
    """
    return cast(Tensor, _SquaredDistances.apply(rows))  # type: ignore[no-untyped-call]


def streamed_row_variance(logits: Tensor, weight: Tensor, chunk: int | None = None) -> Tensor:
    r"""Variance for many classes, where :math:`D` would not fit: rows are seen from the top one.

    .. math:: \mathrm{Var}_p(w) = \sum_{c \ne t} p_c \|w_c - w_t\|^2
              - \Big\|\sum_{c \ne t} p_c (w_c - w_t)\Big\|^2, \qquad t = \arg\max_c p_c

    By Cauchy-Schwarz the second term is at most ``1 - p_t`` times the first, so the difference
    keeps a share ``p_t`` of it: nothing cancels when the softmax saturates. The squared
    distances are expanded, in float64 around the mean row, so that one product ``p @ W`` gives
    both terms. The relative error is about ``1e-16 * (|w_c| / |w_c - w_t|)^2 / p_t`` with ``c``
    the classes that carry the variance: below float32 rounding unless rows are equal to four
    digits, where the pairwise form is the accurate one.

    ``chunk`` is how many classes are taken at a time; by default as many as fit in 8 MiB.
    """
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // max(logits.shape[0], weight.shape[1]))
    return cast(Tensor, _StreamedVariance.apply(logits, weight, chunk))  # type: ignore[no-untyped-call]


class _SquaredDistances(torch.autograd.Function):
    """Squared distances between rows by differences, ``[classes, width] -> [classes, classes]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        rows: Tensor = ctx.saved_tensors[0]
        (grad,) = grad_outputs
        centred = rows - rows.mean(dim=-2, keepdim=True)
        pull = grad + grad.mT
        # A row has no distance to itself; left in, this largest entry (p_top^2) would have to
        # cancel between the two products.
        pull = pull - torch.diag_embed(pull.diagonal(dim1=-2, dim2=-1))
        return 2 * (pull.sum(dim=-1, keepdim=True) * centred - pull @ centred)


class _StreamedVariance(torch.autograd.Function):
    """`streamed_row_variance`, forward and backward in one pass each over chunks of classes.

    Nothing of size ``[examples, classes]`` or ``[classes, width]`` is kept for the backward pass,
    which recomputes. It consists of differentiable operations: second derivatives work.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, weight: Tensor, chunk: int) -> Tensor:
        return _Stream(logits, weight, chunk).variance.to(logits.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        logits, weight, ctx.chunk = inputs
        ctx.save_for_backward(logits, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        logits, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        stream = _Stream(logits, weight, ctx.chunk)
        outer = grad_outputs[0].to(stream.wide)[:, None]
        drift = stream.offset.square().sum(dim=-1, keepdim=True)
        variance = stream.variance[:, None]
        at_top = (drift - variance) / stream.total * outer
        mean = stream.top_row + stream.offset
        # Filled chunk by chunk: collecting the chunks to join them would need twice the memory.
        # The zero makes them batched tensors under vmap whichever input is batched.
        zero = 0 * (outer * stream.total).sum()
        logit_grad = zero.to(logits.dtype).expand(logits.shape).clone() if wanted[0] else None
        weight_grad = zero.to(weight.dtype).expand(weight.shape).clone() if wanted[1] else None
        for part, is_top, odds, rows in stream.chunks():
            probs = odds / stream.total * outer
            if logit_grad is not None:
                # d Var / d z_c = p_c (|w_c - mean|^2 - Var)
                distance = rows.square().sum(dim=-1) - 2 * mean @ rows.mT
                distance = distance + mean.square().sum(dim=-1, keepdim=True)
                grad = torch.where(is_top, at_top, probs * (distance - variance))
                logit_grad[:, part] = grad.to(logits.dtype)
            if weight_grad is not None:
                # d Var / d w_c = 2 p_c (w_c - mean), the top class apart: there w_c - mean is
                # the small offset, known without cancellation.
                grad = probs.sum(dim=0)[:, None] * rows - probs.mT @ mean
                weight_grad[part] = (2 * grad).to(weight.dtype)
        if weight_grad is not None:
            at_top_row = (-2 * outer * stream.offset / stream.total).to(weight.dtype)
            weight_grad = weight_grad.index_add_(0, stream.top[:, 0], at_top_row)
        return logit_grad, weight_grad, None


class _Stream:
    """First and second moment of the rows, seen from each example's most probable row.

    Attributes:
        top: Most probable class, ``[examples, 1]``; ``top_row`` its row, ``[examples, width]``.
        total: Sum of the odds against the top class, itself included, ``[examples, 1]``.
        offset: Mean row minus top row, ``[examples, width]``.
        variance: ``[examples]``.
    """

    def __init__(self, logits: Tensor, weight: Tensor, chunk: int) -> None:
        self.logits, self.weight, self.chunk_size = logits, weight, chunk
        # Apple's MPS knows no float64.
        self.wide = torch.float32 if logits.device.type == "mps" else torch.float64
        self.top = logits.argmax(dim=-1, keepdim=True)
        # The variance does not depend on the origin: no gradient flows through it.
        self.centre = weight.detach().mean(dim=0).to(self.wide)
        self.top_row = weight[self.top[:, 0]].to(self.wide) - self.centre
        self.top_logit = logits.gather(-1, self.top).to(self.wide)
        mass = torch.zeros_like(self.top_logit)
        square = torch.zeros_like(self.top_logit)
        first = torch.zeros_like(self.top_row)
        for _, _, odds, rows in self.chunks():
            mass = mass + odds.sum(dim=-1, keepdim=True)
            square = square + odds @ rows.square().sum(dim=-1, keepdim=True)
            first = first + odds @ rows
        self.total = 1 + mass
        share, square, first = mass / self.total, square / self.total, first / self.total
        self.offset = first - share * self.top_row
        second = square + (self.top_row * (share * self.top_row - 2 * first)).sum(-1, keepdim=True)
        self.variance = second.squeeze(-1) - self.offset.square().sum(dim=-1)

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield ``(part, is_top, odds, rows)`` of consecutive classes; a top class has odds 0."""
        classes = torch.arange(self.weight.shape[0], device=self.weight.device)
        for start in range(0, len(classes), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            is_top = classes[part] == self.top
            gaps = self.logits[:, part].to(self.wide) - self.top_logit
            rows = self.weight[part].to(self.wide) - self.centre
            yield part, is_top, gaps.exp().masked_fill(is_top, 0.0), rows
