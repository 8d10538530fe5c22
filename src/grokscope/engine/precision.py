"""In which precision a GPU multiplies float32: looks in full, training as its phase says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Round products to TF32 if a phase's precision is that and the device is a GPU."""
    if precision != "tf32" or device.type != "cuda":
        yield
        return
    set_tf32(True)
    try:
        yield
    finally:
        set_tf32(False)


def set_tf32(allowed: bool) -> None:
    """Say whether matrix products and convolutions of float32 may be rounded to TF32 on a GPU."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    places: tuple[Any, ...] = (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None))
    if not hasattr(matmul, "fp32_precision"):  # PyTorch before 2.9
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        return
    for place in places:
        place.fp32_precision = "tf32" if allowed else "ieee"
