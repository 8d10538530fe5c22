"""This machine: what it has to compute on, and what a reader needs to judge or repeat a run."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from grokscope.engine.precision import set_tf32
from grokscope.spec import Segment
from grokscope.version import __version__

# A fixed workspace makes cuBLAS repeat itself; more queues let streams run side by side.
CUDA_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}


def find_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` is CUDA where there is a GPU, else the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    for variable, value in CUDA_ENVIRONMENT.items():  # before anybody asks whether there is a GPU
        os.environ.setdefault(variable, value)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            prepare_cuda()
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} can't be used here ({reason}); try cpu") from error
    return device


def prepare_cuda() -> None:
    """Make what is computed on a GPU a function of its inputs.

    Operations without a deterministic form warn and run. Uninitialised memory is not filled, which
    would cost a kernel for each buffer. Products are in full precision, but where a phase asks for
    TF32.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    set_tf32(False)


def _cuda_settings() -> dict[str, Any]:
    """What `prepare_cuda` has set, as it is now."""
    return {
        **{name: os.environ.get(name) for name in CUDA_ENVIRONMENT},
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


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
        **({"cuda_settings": _cuda_settings()} if device.type == "cuda" else {}),
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
