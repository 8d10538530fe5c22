"""What this machine has to compute on: its cores, its GPUs, and a device by name."""

from __future__ import annotations

import os

import torch


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
