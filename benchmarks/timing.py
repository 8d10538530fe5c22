"""Timing that holds on a noisy machine: contenders take turns, medians and ratios are quoted."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

FLOAT = torch.float32


@dataclass(frozen=True)
class Timed:
    """Seconds of one contender: the median, and the range of its rounds."""

    median: float
    fastest: float
    slowest: float


@dataclass
class Table:
    """One question: contenders with their times; ``baseline`` is what a user would write."""

    name: str
    question: str
    baseline: str
    times: dict[str, Timed] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def ratio(self, name: str) -> float:
        """How many times faster than the baseline."""
        return self.times[self.baseline].median / self.times[name].median

    def as_dict(self) -> dict[str, object]:
        ratios = {name: self.ratio(name) for name in self.times}
        return asdict(self) | {"ratios": ratios}


def race(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 5, seconds: float = 0.3
) -> dict[str, Timed]:
    """Time contenders in turn, each often enough to fill ``seconds``, ``rounds`` times.

    Args:
        contenders: Name -> what to call.
        rounds: Rounds of turns, after one that does not count.
        seconds: A round of one contender lasts about this long, and one call at least.
    """
    calls = {}
    for name, function in contenders.items():
        start = time.perf_counter()
        function()
        taken = time.perf_counter() - start
        calls[name] = max(1, round(seconds / max(taken, 1e-9)))
        if taken < seconds / 10:  # the first call warms up: count again
            start = time.perf_counter()
            function()
            calls[name] = max(1, round(seconds / max(time.perf_counter() - start, 1e-9)))
    each: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            each[name].append((time.perf_counter() - start) / calls[name])
    return {
        name: Timed(statistics.median(values), min(values), max(values))
        for name, values in each.items()
    }


def peak_flops(threads: int = 1) -> float:
    """FLOP/s of the best of a few large float32 matrix products."""
    torch.set_num_threads(threads)
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        timed = race({"product": lambda a=a, b=b: a @ b}, rounds=3, seconds=0.2)["product"]
        best = max(best, 2 * size**3 / timed.fastest)
    return best


def copy_bandwidth() -> float:
    """Bytes/s read and written by a copy that does not fit the caches."""
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    timed = race({"copy": lambda: target.copy_(source)}, rounds=3, seconds=0.3)["copy"]
    return 2 * source.nbytes / timed.fastest


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in named.items()}
    family = " ".join(f"{key} {named[key]}" for key in ("cpu family", "model") if key in named)
    return {
        "processor": f"{named.get('model name', platform.processor())} ({family})",
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
