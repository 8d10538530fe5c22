"""What the device can do at best: bytes moved by a copy, operations made by a matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.clock import seconds_of

KINDS = {  # name -> type of the operands, and whether products of float32 may use TF32
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float64": (torch.float64, False),
}


def copy_bytes(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of a copy of ``size`` bytes."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def product_flops(device: torch.device, kind: str, size: int) -> float:
    """Operations a second of a square matrix product on random data."""
    dtype, tf32 = KINDS[kind]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with _tf32(tf32):
        return 2 * size**3 / seconds_of(lambda: left @ right, device)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
