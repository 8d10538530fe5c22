"""Constraints on the head, enforced after every step by scaling it down."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from grokscope.interventions.schedule import Scheduled
from grokscope.measures import logit_scale


class FrobeniusCap(Scheduled):
    """The Frobenius norm of the head's weight stays at most ``cap``, as in the paper."""

    kind: Literal["frobenius"] = "frobenius"
    cap: float = Field(gt=0)


class SpectralCap(Scheduled):
    """The largest singular value of the head's weight stays at most ``cap``."""

    kind: Literal["spectral"] = "spectral"
    cap: float = Field(gt=0)


class LogitScaleCap(Scheduled):
    """The mean logit scale on the batch just learnt from stays at most ``cap``, in nats."""

    kind: Literal["logit_scale"] = "logit_scale"
    cap: float = Field(gt=0)


Constraint = Annotated[FrobeniusCap | SpectralCap | LogitScaleCap, Field(discriminator="kind")]


@torch.no_grad()
def constrain(
    constraint: FrobeniusCap | SpectralCap | LogitScaleCap, head: nn.Linear, features: Tensor
) -> None:
    """Scale the head down to meet a constraint, if it does not; nothing waits for the device.

    The published projection scales the weight alone; so do the caps on its norm. The cap on the
    logit scale scales weight and bias.

    Args:
        constraint: Which, and how much.
        head: Changed in place.
        features: Inputs of the head in this step, ``[examples, width]``.

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
    weight.mul_(factor)
    if isinstance(constraint, LogitScaleCap) and head.bias is not None:
        head.bias.mul_(factor)
