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
    moving = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moving]
    with torch.no_grad():
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale = radius / length.clamp(min=1e-12)
        torch._foreach_add_(moving, torch._foreach_mul(gradients, scale))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moving, before)


@contextmanager
def batch_norm_frozen(model: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch, but its running statistics stand still.

    SAM's second pass sees weights that are not the model's; counted in, it would mix their
    statistics into those that evaluation uses.
    """
    kind = nn.modules.batchnorm._BatchNorm
    layers = [module for module in model.modules() if isinstance(module, kind)]
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked for layer in layers]
    before = [None if count is None else count.clone() for count in counts]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for count, saved in zip(counts, before, strict=True):
            if count is not None and saved is not None:
                count.copy_(saved)
