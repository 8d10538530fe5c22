"""What the device can do at best: bytes moved by a copy, operations made by a matrix product."""

from __future__ import annotations

import torch

from benchmarks.gpu.clock import seconds_of
from grokscope.engine.precision import products_in

KINDS = {  # name -> type of the operands, and the precision of their products
    "float32": (torch.float32, "float32"),
    "TF32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "bfloat16"),
    "float64": (torch.float64, "float64"),
}


def copy_bytes(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy of ``size`` bytes."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def product_flops(device: torch.device, kind: str, size: int) -> float:
    """Operations a second of a square matrix product on random data."""
    dtype, precision = KINDS[kind]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with products_in(precision, device):
        return 2 * size**3 / seconds_of(lambda: left @ right, device)
