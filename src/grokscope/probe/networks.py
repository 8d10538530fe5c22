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

    def at(self, networks: Sequence[int]) -> Block:
        """Those of some networks."""
        return Block(*(at(tensor, networks) for tensor in self))

    def to(self, device: torch.device) -> Block:
        """On another device."""
        return Block(*(tensor.to(device) for tensor in self))

    def local(self) -> Block:
        """On a device that knows float64."""
        return Block(local(self.features), local(self.logits), local(self.labels).long())


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
        bias = None if self.bias is None else local(self.bias.detach()).double()
        return Heads(local(self.weight.detach()).double(), bias)

    def at(self, networks: Sequence[int]) -> Tensors:
        """Weights, and biases if there are any, of some networks by name."""
        tensors = {"weight": self.weight, "bias": self.bias}
        return {
            name: at(tensor, networks) for name, tensor in tensors.items() if tensor is not None
        }


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


def at(tensor: Tensor, places: Sequence[int]) -> Tensor:
    """Some entries of the first axis, in rising order; no copy if that is all of them."""
    if len(places) == len(tensor):
        return tensor
    return tensor.index_select(0, torch.tensor(places, device=tensor.device))


def local(tensor: Tensor) -> Tensor:
    """On a device that knows float64: Apple's MPS does not."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
