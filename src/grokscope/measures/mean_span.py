r"""The span of the class means, where neural collapse looks: NC1 weighs it, NC4 compares in it.

All of it is float64. Axes: ``examples`` (n), ``classes`` (C, those present), ``width`` (d),
``directions`` (the lesser of C and d).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from grokscope.measures.pieces import deviations
from grokscope.measures.record import Batch


def inverse_of_means(means: Tensor) -> Tensor:
    r"""Pseudo-inverse of the centred means, ``[width, classes]``.

    With M the centred means :math:`\Sigma_B^+ / C = M^+ (M^+)^T`, so that NC1 is
    :math:`\operatorname{Tr}((M^+)^T \Sigma_W M^+)`.
    """
    # In float64 this is slow on a GPU, and small.
    host = means.cpu() if means.is_cuda else means
    inverse = torch.linalg.pinv(
        host - host.mean(dim=0), atol=_rounding(host), rtol=torch.zeros_like(_rounding(host))
    ).to(means.device)
    # Means that all coincide span nothing: NaN, where the pseudo-inverse would say "collapsed".
    return torch.where(inverse.any(), inverse, math.nan)


def _rounding(means: Tensor) -> Tensor:
    """What centring leaves in directions that do not exist: errors the size of the means."""
    return (
        max(means.shape) * torch.finfo(means.dtype).eps * torch.linalg.matrix_norm(means.detach())
    )


class Span(NamedTuple):
    """Examples in the span of the centred class means, for NC1 and NC4 in one product.

    Attributes:
        deviations: From the class mean of the example, ``[examples, directions]``.
        scale: Singular values of the centred means, ``[directions]``; those of rounding errors
            are infinite.
        means: Centred means, ``[classes, directions]``.
    """

    deviations: Tensor
    scale: Tensor
    means: Tensor


def span_of(batch: Batch) -> Span:
    """The examples of a batch; not differentiable."""
    means = batch.present[0].mean
    host = means.cpu()
    rows, scale, directions = torch.linalg.svd(host - host.mean(dim=0), full_matrices=False)
    centred = (rows * scale).to(means.device)
    scale = scale.masked_fill(scale <= _rounding(host), math.inf).to(means.device)
    basis = directions.mT.to(means.device)
    seen = means.new_empty(len(batch.labels), len(scale))
    for part, deviation in deviations(batch.parts, batch.moments.mean, batch.labels):
        torch.mm(deviation, basis, out=seen[part])
    return Span(seen, scale, centred)
