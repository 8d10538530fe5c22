"""What a reader needs to judge or repeat a run: versions, machine, seeds, duration."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import grokscope
from grokscope.spec import Segment


def environment(
    segment: Segment, started: str, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Facts about the process that finishes a segment.

    Args:
        segment: What was run.
        started: When this process began, in ISO format.
        seconds: Seconds of work, those of earlier processes included.
        device: Where it was computed.
    """
    return {
        "grokscope": grokscope.__version__,
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
