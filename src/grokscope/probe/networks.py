"""Tensors of one network or of several of one shape, stacked along a first axis.

Axes: ``r`` networks, ``n`` examples of each, ``t`` positions, ``d`` width, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from grokscope.probe.inputs import map_tensors, tensors_of

Tensors = dict[str, Any]  # tensors by name, or trees of them


class Block(NamedTuple):
    """Some examples: features ``[r, n, d]``, logits ``[r, n, c]``, labels ``[r, n]``.

    Of all positions of examples: ``[r, n, t, d]``, ``[r, n, t, c]``, ``[r, n, t]``.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor


class Heads(NamedTuple):
    """Heads of networks: weights ``[r, c, d]`` and biases ``[r, c]`` or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, head: nn.Linear) -> Heads:
        """The head of one network."""
        return cls(head.weight[None], None if head.bias is None else head.bias[None])

    def wide(self) -> Heads:
        """In float64, detached."""
        return map_tensors(lambda tensor: local(tensor.detach()).double(), self)

    def named(self) -> Tensors:
        """Weights, and biases if there are any, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}


def of_each(
    function: Callable[[Tensors], Tensors], tensors: Tensors, randomness: str = "error"
) -> Tensors:
    """A function of one network's tensors, for all of them: plainly for one, by vmap for more.

    Tensors have a first axis of networks, which the function does not see; so has what is returned.
    """
    if len(next(tensors_of(tensors))) == 1:
        values = function(map_tensors(lambda tensor: tensor[0], tensors))
        return map_tensors(lambda tensor: tensor[None], values)
    return vmap(function, randomness=randomness)(tensors)


def at(tree: Any, networks: Sequence[int]) -> Any:
    """A tree of some networks, in rising order; no copy if that is all of them."""

    def chosen(tensor: Tensor) -> Tensor:
        if len(networks) == len(tensor):
            return tensor
        return tensor.index_select(0, torch.tensor(networks, device=tensor.device))

    return map_tensors(chosen, tree)


def local(tensor: Tensor) -> Tensor:
    """On a device that knows float64: Apple's MPS does not."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
