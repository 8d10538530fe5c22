"""Trees of tensors: what models are given, and other nested tuples, lists and mappings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def map_tensors(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A tree with a function of each tensor in its place.

    A tree is a tensor, a tuple, list or mapping of trees, or anything else, which stays. Mappings
    become dictionaries, lists tuples; named tuples stay. The function is also given the tensors at
    the same place of other trees of the same form.
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


def take(tree: Any, index: Tensor | slice) -> Any:
    """A tree of some examples."""
    return map_tensors(lambda tensor: tensor[index], tree)


def stacked(trees: Sequence[Any]) -> Any:
    """A tree of the tensors of several networks, stacked along a new first axis."""
    return map_tensors(lambda *tensors: torch.stack(tensors), *trees)
