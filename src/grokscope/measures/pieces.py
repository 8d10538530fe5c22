"""Features in float64, a piece at a time that stays in the cache.

A float64 copy of all features would cost more than the arithmetic on it: twice their memory, and
a page fault for every 4 KiB of it. Axes: ``examples`` (n), ``classes`` (C), ``width`` (d).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from grokscope.measures.checks import is_differentiated

# Features ``[examples, width]``, in one tensor or in consecutive ones.
Parts = Tensor | Sequence[Tensor]
# Elements of one float64 temporary: 4 MiB on a CPU, two of which stay in its last cache. Smaller
# ones suit one thread as well, but several wait for each other at each operation.
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
    features: Parts, origin: Tensor | None, index: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive examples, and how far they deviate from an origin, exact in float64.

    Args:
        features: ``[examples, width]``, any floating dtype.
        origin: One origin ``[width]``, or several ``[classes, width]``; float64. None: zero.
        index: Which of several origins each example has, ``[examples]``.

    Yields:
        The examples as a slice, and their deviations ``[some, width]``. Where nothing is
        differentiated these lie in memory that is reused: they hold until the next are asked for.
    """
    parts = parts_of(features)
    width, device = parts[0].shape[1], parts[0].device
    rows = max(1, (GPU_CHUNK_ELEMENTS if device.type == "cuda" else CHUNK_ELEMENTS) // width)
    watched = is_differentiated(parts[0])
    reused = 0 if watched else min(rows, max(map(len, parts)))
    deviation, origins = _workspace.pair(reused, width, device)
    start = 0
    for some in (some for part in parts for some in part.split(rows)):
        here, examples = origin, slice(start, start + len(some))
        start = examples.stop
        if watched:  # autograd keeps every temporary
            if origin is not None and index is not None:
                here = origin.index_select(0, index[examples])
            wide = some.double()
            yield examples, wide if here is None else wide - here
        else:
            wide = deviation[: len(some)].copy_(some)
            if origin is not None and index is not None:
                here = torch.index_select(origin, 0, index[examples], out=origins[: len(wide)])
            yield examples, wide if here is None else wide.sub_(here)


def parts_of(features: Parts) -> Sequence[Tensor]:
    """Features in consecutive parts."""
    return [features] if isinstance(features, Tensor) else features


def rows_of(features: Parts, index: Tensor) -> Tensor:
    """Some examples, by their places in all of the parts, ``[chosen, width]``.

    Several parts wait for the device.
    """
    parts = parts_of(features)
    if len(parts) == 1:
        return parts[0].index_select(0, index)
    rows = parts[0].new_empty(len(index), parts[0].shape[1])
    start = 0
    for part in parts:
        here = ((index >= start) & (index < start + len(part))).nonzero().squeeze(-1)
        rows[here] = part[index[here] - start]
        start += len(part)
    return rows


def lengths_of(features: Tensor) -> Tensor:
    """Length of each example's features, ``[..., width] -> [...]``, float64."""
    if is_differentiated(features):
        return torch.linalg.vector_norm(features.double(), dim=-1)
    flat = features.reshape(-1, features.shape[-1])
    lengths = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
    if features.dtype == torch.float64:
        torch.linalg.vector_norm(flat, dim=-1, out=lengths)
    else:
        for part, wide in deviations(flat, origin=None):
            torch.linalg.vector_norm(wide, dim=-1, out=lengths[part])
    return lengths.view(features.shape[:-1])
