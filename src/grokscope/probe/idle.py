"""Weights of convolutions that only ever multiply padding.

Where the feature map is smaller than the kernel, some taps of the kernel meet the image at no
position. No gradient of the loss reaches their weights, though weight decay still shrinks them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grokscope.measures.curvature import as_arguments
from grokscope.probe.head import unwrapped
from grokscope.probe.probe import undisturbed

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FORWARDS = {kind.forward for kind in CONVOLUTIONS}


def idle_taps(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Taps of convolutions that multiply nothing but padding when a model sees these inputs.

    It follows from the sizes of kernels and feature maps, and not from values: a unit that is
    zero on all of these inputs does not count.

    Args:
        model: Called once, in evaluation mode, if it has convolutions; left as it was.
        inputs: A few examples, of the size that the model is trained on.

    Returns:
        By the name of the weight, which taps are idle, ``[*kernel]``; without the weights that
        have none, those that are computed from other parameters, and those of convolutions with a
        forward of their own, unless an attribute ``is_ordinary`` says that the function is the
        same.

    Cost: one forward pass.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 2))
        >>> int(idle_taps(model, torch.randn(5, 1, 1, 1))["0.weight"].sum())
        8
    """
    met: dict[int, Tensor] = {}  # by the identity of the weight, which may be shared

    def record(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen = taps_met(module, arguments[0] if arguments else keywords["input"])
        weight = id(module.weight)
        met[weight] = seen | met[weight] if weight in met else seen

    layers = [layer for layer in model.modules() if isinstance(layer, CONVOLUTIONS)]
    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    positional, keywords = as_arguments(inputs)
    try:
        if layers:
            with undisturbed(model):
                unwrapped(model)(*positional, **keywords)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: ~met[id(weight)]
        for name, weight in model.named_parameters()
        if id(weight) in met and not bool(met[id(weight)].all())
    }


def taps_met(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Which taps meet the image ``x`` at some position, ``[*kernel]``."""
    met = torch.ones(layer.kernel_size, dtype=torch.bool, device=layer.weight.device)
    # One that pads or changes its weight in a forward of its own: nothing is known to be idle.
    is_ordinary = type(layer).forward in FORWARDS or getattr(layer, "is_ordinary", False)
    if not is_ordinary or layer.padding_mode != "zeros" or layer.padding == "valid":
        return met
    axes = len(layer.kernel_size)
    for axis, (size, kernel) in enumerate(zip(x.shape[-axes:], layer.kernel_size, strict=True)):
        stride, dilation = layer.stride[axis], layer.dilation[axis]
        reach = dilation * (kernel - 1)
        if isinstance(layer.padding, str):  # "same"
            before, total = reach // 2, reach
        else:
            before, total = int(layer.padding[axis]), 2 * int(layer.padding[axis])
        corners = torch.arange(0, size + total - reach, stride) - before  # one for each position
        pixels = corners[:, None] + dilation * torch.arange(kernel)
        inside = ((pixels >= 0) & (pixels < size)).any(dim=0)
        met &= inside.to(met.device).view(-1, *[1] * (axes - 1 - axis))
    return met
