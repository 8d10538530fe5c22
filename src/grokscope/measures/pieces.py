"""Features in float64, a piece at a time that stays in the cache.

A float64 copy of all features would cost more than the arithmetic on it: twice their memory, and
a page fault for every 4 KiB of it. Axes: ``examples`` (n), ``classes`` (C), ``width`` (d).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from grokscope.measures.checks import is_differentiated

# Elements of one float64 temporary: 4 MiB on a CPU, two of which stay in its last cache. Smaller ones
# would be faster on one thread, but several have to wait for each other at each operation.
CHUNK_ELEMENTS = 2**19
# The same on a GPU, 128 MiB: there a kernel is cheap only if it has much to do.
GPU_CHUNK_ELEMENTS = 2**24


class _Workspace(threading.local):
    """Two float64 temporaries, kept from call to call by each thread.

    Fresh ones cost page faults, as often as the C library gives their memory back to the system:
    up to as much time as all of the arithmetic.
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):  # such tensors could not be written to outside of it
            self.first = torch.empty(CHUNK_ELEMENTS, dtype=torch.float64)
            self.second = torch.empty_like(self.first)

    def pair(self, rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two uninitialised ``[rows, width]``; on a GPU fresh, which its allocator has at hand."""
        size = rows * width
        if device.type == "cpu" and size <= len(self.first):
            return self.first[:size].view(rows, width), self.second[:size].view(rows, width)
        fresh = torch.empty(rows, width, dtype=torch.float64, device=device)
        return fresh, torch.empty_like(fresh)


_workspace = _Workspace()


def deviations(
    features: Tensor, origin: Tensor, index: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive examples, and how far they deviate from an origin, exact in float64.

    Args:
        features: ``[examples, width]``, any floating dtype.
        origin: One origin ``[width]``, or several ``[classes, width]``; float64.
        index: Which of several origins each example has, ``[examples]``.

    Yields:
        The examples as a slice, and their deviations ``[some, width]``. Where nothing is
        differentiated these lie in memory that is reused: they hold until the next are asked for.
    """
    examples, width = features.shape
    elements = GPU_CHUNK_ELEMENTS if features.is_cuda else CHUNK_ELEMENTS
    rows = max(1, elements // width)
    watched = is_differentiated(features)
    reused = 0 if watched else min(rows, examples)
    deviation, origins = _workspace.pair(reused, width, features.device)
    for start in range(0, examples, rows):
        part = slice(start, min(start + rows, examples))
        if watched:  # autograd keeps every temporary
            here = origin if index is None else origin.index_select(0, index[part])
            yield part, features[part].double() - here
            continue
        count = part.stop - start
        here, wide = origin, deviation[:count]
        if index is not None:
            here = torch.index_select(origin, 0, index[part], out=origins[:count])
        yield part, wide.copy_(features[part]).sub_(here)


def lengths_of(features: Tensor) -> Tensor:
    """Length of each example's features, ``[..., width] -> [...]``, float64."""
    if is_differentiated(features):
        return torch.linalg.vector_norm(features.double(), dim=-1)
    flat = features.reshape(-1, features.shape[-1])
    lengths = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
    if features.dtype == torch.float64:
        torch.linalg.vector_norm(flat, dim=-1, out=lengths)
    else:
        zero = lengths.new_zeros(())
        for part, wide in deviations(flat, zero):
            torch.linalg.vector_norm(wide, dim=-1, out=lengths[part])
    return lengths.view(features.shape[:-1])
