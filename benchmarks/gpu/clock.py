"""Time on a device: by CUDA events on a GPU, by the host's clock elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

SECONDS = 0.15  # that one window fills
WINDOWS = 5  # whose median counts


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from an idle device to an idle device, on whatever streams the call uses."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    torch.cuda.synchronize(device)  # all streams: the event below knows only the present one
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def seconds_of(
    call: Callable[[], object],
    device: torch.device,
    *,
    window: float = SECONDS,
    windows: int = WINDOWS,
) -> float:
    """Seconds of one call: the median of windows, after a warm-up that does not count."""
    call()
    count = max(1, round(window / max(elapsed(call, device), 1e-7)))

    def many() -> None:
        for _ in range(count):
            call()

    return statistics.median(elapsed(many, device) for _ in range(windows)) / count
