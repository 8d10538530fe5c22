"""SAM: the gradient is taken where the loss is worst nearby (Foret et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved_up(parameters: Sequence[Tensor], radius: float) -> Iterator[None]:
    """Weights moved by ``radius`` along their gradients; moved back, to the bit, at the end.

    Args:
        parameters: With gradients; those without are left alone.
        radius: Euclidean length of the move over all parameters together.
    """
    moving = [each for each in parameters if each.grad is not None]
    gradients = [each.grad.clone() for each in moving if each.grad is not None]
    before = [each.detach().clone() for each in moving]
    lengths: list[Tensor] = torch._foreach_norm(gradients)  # type: ignore[assignment]
    length = torch.linalg.vector_norm(torch.stack(lengths))
    scale = radius / length.clamp(min=1e-12)
    with torch.no_grad():
        for each, gradient in zip(moving, gradients, strict=True):
            each.add_(gradient * scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for each, own in zip(moving, before, strict=True):
                each.copy_(own)


@contextmanager
def batch_norm_frozen(model: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch, but its running statistics stand still.

    SAM's second pass sees weights that are not the model's; counted in, it would mix their
    statistics into those that evaluation uses.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    before = [each.momentum for each in layers]
    tracked = [each.num_batches_tracked for each in layers]
    saved = [None if count is None else count.clone() for count in tracked]
    for each in layers:
        each.momentum = 0.0
    try:
        yield
    finally:
        for each, momentum, count, own in zip(layers, before, tracked, saved, strict=True):
            each.momentum = momentum
            if count is not None and own is not None:
                count.copy_(own)
