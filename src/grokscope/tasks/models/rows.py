"""Rows of a table by their numbers, with a gradient that is the same each time on a GPU too."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table: ``[rows, ...], [n] -> [n, ...]``, as ``table.index_select(0, index)``.

    The gradient adds up what came back for each row. On a GPU that is done by atomic additions,
    whose order changes from run to run, or after a sort of the index; a product with the one-hot
    matrix ``[rows, n]`` is neither, and it can be captured in a CUDA graph.

    Cost: forward one copy of the rows; backward on a GPU O(rows * n * width), else O(n * width).
    """
    if table.device.type != "cuda":
        return table.index_select(0, index)
    return cast(Tensor, TakeRows.apply(table, index))  # type: ignore[no-untyped-call]


class TakeRows(torch.autograd.Function):
    """`take_rows` as on a GPU. Its backward pass consists of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table: Tensor, index: Tensor) -> Tensor:
        return table.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.rows = len(inputs[0])
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        index: Tensor = ctx.saved_tensors[0]
        (grad,) = grad_outputs
        rows = torch.arange(ctx.rows, device=index.device)
        one_hot = (rows[:, None] == index[None, :]).to(grad.dtype)
        return (one_hot @ grad.flatten(1)).unflatten(-1, grad.shape[1:]), None
