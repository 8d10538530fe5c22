"""This machine: what it has to compute on, and what a reader needs to judge or repeat a run."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from grokscope.spec import Segment
from grokscope.version import __version__


def find_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is CUDA where there is a GPU, else the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} can't be used here ({reason}); try cpu") from error
    return device


def count_gpus(name: str) -> int:
    """How many GPUs of this machine a device name stands for."""
    if name.startswith("cuda:"):
        return 1
    return torch.cuda.device_count() if name in ("auto", "cuda") else 0


def count_cores() -> int:
    """Cores that this process may use; all there are where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(
    segment: Segment, started: str, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Facts about the process that finishes a segment: versions, machine, seeds, duration.

    Args:
        segment: What was run.
        started: When this process began, in ISO format.
        seconds: Seconds of work, those of earlier processes included.
        device: Where it was computed.
    """
    return {
        "grokscope": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "seeds": segment.run.seeds.model_dump(),
        "started": started,
        "seconds": round(seconds, 3),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _revision() -> str | None:
    """Git revision of this package's checkout, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
