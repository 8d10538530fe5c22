"""Bias-free linear layers that take the fastest float32 matrix product of the machine.

PyTorch's x86 builds send float32 products to MKL, which takes AVX2 kernels on AMD processors;
oneDNN, in the same build, takes AVX-512 there: 250 against 110 GFLOP/s on one EPYC core
(`benchmarks/step.py`), in the same precision. Elsewhere the plain product is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

ROWS_AT_ONCE = 4096  # keeps the widest intermediate in a core's cache
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``: ``[..., in], [out, in] -> [..., out]``, differentiable.

    Equals `torch.nn.functional.linear` up to float32 rounding. Cost: 2 * rows * in * out FLOPs.
    """
    if not _takes_onednn(x, weight):
        return functional.linear(x, weight)
    product = _Linear.apply(x.reshape(-1, x.shape[-1]), weight)
    return product.view(*x.shape[:-1], weight.shape[0])


def feedforward(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """``relu(x @ expand.T) @ contract.T``: ``[..., d], [f, d], [d, f] -> [..., d]``.

    Where oneDNN is used, the backward pass recomputes the wide intermediate chunk by chunk: the
    product is cheaper than a trip to memory and back. Cost: 4 * rows * d * f FLOPs.
    """
    if not _takes_onednn(x, expand):
        return functional.linear(functional.relu(functional.linear(x, expand)), contract)
    return _Feedforward.apply(x.reshape(-1, x.shape[-1]), expand, contract).view_as(x)


class FastLinear(nn.Linear):
    """`nn.Linear` without bias, through `linear`: same parameters, names and initialisation."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, activation: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, activation, [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _product(x, weight)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        # The products of the backward pass are such products again, of transposed views; so
        # the layer can be differentiated any number of times.
        of_x = linear(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = linear(x.t(), gradient.t()).t() if ctx.needs_input_grad[1] else None
        return of_x, of_weight


class _Feedforward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
        output = torch.empty_like(x)
        for rows, out in zip(x.split(ROWS_AT_ONCE), output.split(ROWS_AT_ONCE), strict=True):
            out.copy_(_product(_product(rows, expand, "relu"), contract))
        return output

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        x, expand, contract = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiable products
            return _feedforward_gradients(gradient, x, expand, contract)
        of_x = torch.empty_like(x)
        of_expand, of_contract = torch.zeros_like(expand), torch.zeros_like(contract)
        for rows, out, above in zip(
            x.split(ROWS_AT_ONCE),
            of_x.split(ROWS_AT_ONCE),
            gradient.split(ROWS_AT_ONCE),
            strict=True,
        ):
            parts = _feedforward_gradients(above, rows, expand, contract)
            out.copy_(parts[0])
            of_expand += parts[1]
            of_contract += parts[2]
        return of_x, of_expand, of_contract


def _feedforward_gradients(
    gradient: Tensor, x: Tensor, expand: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide = functional.relu(linear(x, expand))
    of_wide = torch.ops.aten.threshold_backward(linear(gradient, contract.t()), wide, 0)
    return (
        linear(of_wide, expand.t()),
        linear(x.t(), of_wide.t()).t(),
        linear(gradient.t(), wide.t()),
    )
