"""Trees of tensors, of one network or of several of one shape, stacked along a first axis.

A tree, such as the inputs of a model, is a tensor, a tuple, list or mapping of trees, or anything
else. Axes: ``r`` networks, ``n`` examples of each, ``t`` positions, ``d`` width, ``c`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

Tensors = dict[str, Any]  # tensors by name, or trees of them


def map_tensors(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A tree with a function of each tensor in its place.

    Mappings become dictionaries, lists tuples; named tuples stay, and so does what is not a tensor.
    The function is also given the tensors at the same place of other trees of the same form.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, Mapping):
        return {
            key: map_tensors(function, value, *(other[key] for other in others))
            for key, value in tree.items()
        }
    if isinstance(tree, (tuple, list)):
        parts = [map_tensors(function, *values) for values in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree, one after the other."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors_of(value)


def split(tree: Any, size: int) -> Iterator[Any]:
    """Trees of consecutive examples, ``size`` at a time."""
    total = len(next(tensors_of(tree)))
    for first in range(0, total, size):
        yield take(tree, slice(first, first + size))


def take(tree: Any, index: Tensor | slice | int) -> Any:
    """A tree of some examples; by a number, of one of several networks."""
    return map_tensors(lambda tensor: tensor[index], tree)


def stacked(trees: Sequence[Any]) -> Any:
    """A tree of the tensors of several networks, stacked along a new first axis."""
    return map_tensors(lambda *tensors: torch.stack(tensors), *trees)


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


def over_networks(
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
