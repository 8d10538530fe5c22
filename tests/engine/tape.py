"""A CUDA graph on a CPU: the operations of a step are taped, then executed again at one address.

As in a graph, tensors are known by their memory and Python numbers are part of the tape. A step
that depends on anything else - a number that Python computes anew, a tensor that it replaces, a
branch that it takes - gives other results when it is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# What they return has no defined content: in a graph, whatever was there before.
UNDEFINED = {
    f"aten::{name}"
    for name in (
        "empty",
        "empty_like",
        "empty_permuted",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
    )
}


class NotReplayableError(RuntimeError):
    """An operation that no graph could hold."""


@dataclass(frozen=True)
class Operation:
    """An operation as it was executed.

    Attributes:
        function: The operator.
        arguments: Positional arguments; tensors are aliases, which keep the memory of that moment
            even if the tensor object is given another later.
        keywords: Keyword arguments, likewise.
        results: Its tensors, flattened; None where one shares its memory with an argument, since
            it is then a view, or was written by the operation itself.
    """

    function: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: list[Tensor | None]

    def run(self) -> None:
        """Execute it on the present contents of its arguments; results go where they went."""
        if self.function._schema.name in UNDEFINED:
            for result in self.results:
                assert result is not None
                fill_with_rubbish(result)
            return
        found = [
            leaf
            for leaf in tree_leaves(self.function(*self.arguments, **self.keywords))
            if isinstance(leaf, Tensor)
        ]
        for result, fresh in zip(self.results, found, strict=True):
            if result is None:
                continue
            if (result.shape, result.dtype) != (fresh.shape, fresh.dtype):
                raise NotReplayableError(
                    f"{self.function} gave {result.dtype} {list(result.shape)} when it was taped, "
                    f"and gives {fresh.dtype} {list(fresh.shape)} now"
                )
            result.copy_(fresh)


class Tape(TorchDispatchMode):
    """Tapes every operation, the backward pass's and the optimiser's included.

    A few operations are made of others while any such mode is active (singular values: of a
    decomposition with its vectors), which rounds otherwise; no step that can be captured has one.

    Example:
        >>> with Tape() as tape:
        ...     step()
        >>> tape.replay()  # another step, without the Python that led to it
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # marks of Python's optimisers
            return func(*args, **kwargs)
        # Before it runs: an operation may change the shape of its arguments.
        arguments, keywords = tree_map_only(Tensor, alias, (args, kwargs))
        returned = func(*args, **kwargs)
        leaves = tree_leaves(returned)
        numbers = [leaf for leaf in leaves if isinstance(leaf, bool | int | float | complex)]
        if numbers:
            raise NotReplayableError(f"{func} gives Python the number {numbers[0]}")
        inputs = {memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        results = [
            None if memory(leaf) in inputs else alias(leaf)
            for leaf in leaves
            if isinstance(leaf, Tensor)
        ]
        self.operations.append(Operation(func, arguments, keywords, results))
        return returned

    @property
    def names(self) -> list[str]:
        """Names of the operators, such as ``aten::mm``, in order."""
        return [operation.function._schema.name for operation in self.operations]

    @torch.no_grad()
    def replay(self) -> None:
        """Execute all again. Random operations draw on from their generators."""
        for operation in self.operations:
            operation.run()


def alias(tensor: Tensor) -> Tensor:
    """Another tensor with the same memory."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise NotReplayableError("a tensor of torch.func has no memory; tape outside of it")
    return tensor.detach()


def memory(tensor: Tensor) -> int:
    """What tensors that share their memory have in common."""
    return tensor.untyped_storage()._cdata


def fill_with_rubbish(tensor: Tensor) -> None:
    """NaN, or the largest integer, which no step may depend on."""
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max)
