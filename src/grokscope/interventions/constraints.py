"""Constraints on the head, enforced after every step by scaling it down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grokscope.interventions.settings import FrobeniusCap, LogitScaleCap, SpectralCap
from grokscope.measures import logit_scale


@torch.no_grad()
def constrain(
    constraint: FrobeniusCap | SpectralCap | LogitScaleCap,
    head: nn.Linear,
    features: Tensor,
    *,
    stopped: Tensor | None = None,
) -> None:
    """Scale the head down to meet a constraint, if it does not; nothing waits for the device.

    The published projection scales the weight alone; so do the caps on its norm. The cap on the
    logit scale scales weight and bias.

    Args:
        constraint: The quantity to cap, and its cap.
        head: The head, changed in place.
        features: Inputs of the head in this step, ``[examples, width]``.
        stopped: Whether to leave the head as it is, a scalar on its device.

    Cost: O(classes * width); the spectral norm O(classes * width * min(classes, width)).
    """
    weight = head.weight
    if isinstance(constraint, FrobeniusCap):
        size = torch.linalg.vector_norm(weight)
    elif isinstance(constraint, SpectralCap):
        size = torch.linalg.matrix_norm(weight, ord=2)
    else:
        size = logit_scale(nn.functional.linear(features, weight, head.bias))
    # A guard against 0 / 0 for a head of zeros, which meets every cap.
    factor = (constraint.cap / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1.0)
    if stopped is not None:
        factor = torch.where(stopped, 1.0, factor)
    weight.mul_(factor)
    if isinstance(constraint, LogitScaleCap) and head.bias is not None:
        head.bias.mul_(factor)
