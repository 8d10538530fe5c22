"""Layers of several networks under vmap, computed network by network.

vmap makes grouped convolutions of convolutions, and applies BatchNorm's weight and bias in passes
of their own. Both are slower than the kernels that a network alone uses, which are called here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_functorch = torch._C._functorch


def per_network(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``; under a vmap that batches all of them, one call for each network.

    Args:
        function: A map that Python can trace under vmap: it reads no values. What it writes to one
            of the tensors is written for that network.
        tensors: All tensors that it uses.

    Returns:
        What the function returns, with all derivatives that it has. Under vmap each network has
        the values and the memory layout that it has alone.

    Cost: under vmap a call for each network; outputs and gradients are copied once, to stack them.
    """
    # vmap's rule is better for weights that networks share (a larger batch), and refuses shared
    # statistics. Transforms within vmap, as in vmap(grad(f)), and torch.compile take it as well.
    innermost = None if torch.compiler.is_compiling() else _functorch.peek_interpreter_stack()
    if innermost is None or innermost.key() != _functorch.TransformType.Vmap:
        return function(*tensors)
    if any(_functorch.maybe_get_level(tensor) != innermost.level() for tensor in tensors):
        return function(*tensors)
    result: Tensor = _PerNetwork.apply(function, *tensors)  # type: ignore[no-untyped-call]
    return result


class _PerNetwork(torch.autograd.Function):
    """A rule for vmap. It consists of operations that have derivatives, so it needs none."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing: under vmap only the rule is called."""

    @staticmethod
    def vmap(
        _info: Any,
        axes: Sequence[int],
        function: Callable[..., Tensor],
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        columns = [tensor.unbind(axis) for tensor, axis in zip(tensors, axes[1:], strict=True)]
        networks = zip(*columns, strict=True)
        return torch.stack([per_network(function, *network) for network in networks]), 0
