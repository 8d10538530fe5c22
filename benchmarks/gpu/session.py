"""What every stage is told: where results go, until when, on which device, and how large."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from grokscope.runs.machine import find_device

SECONDS = 600.0  # of a stage that is started by hand


@dataclass(frozen=True)
class Session:
    """One stage's surroundings.

    Attributes:
        out: Folder of the results.
        deadline: When the stage should have ended, on the clock of `time.monotonic`.
        device: What is examined. Its determinism flags are set.
        tiny: Whether sizes are such that a CPU is done in seconds.
        only: The part of the stage that is asked for; empty for all of it.
    """

    out: Path
    deadline: float
    device: torch.device
    tiny: bool
    only: str = ""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def parse(stage: str, arguments: Sequence[str] | None = None) -> Session:
    """The session that a stage's command line describes; prepares the device."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{stage}")
    parser.add_argument("only", nargs="?", default="", help="a part of the stage; default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--until",
        type=float,
        default=time.time() + SECONDS,
        help="when to have ended, in seconds since 1970: what it took to start counts, too",
    )
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto")
    parser.add_argument("--tiny", action="store_true", help="sizes for a smoke test on a CPU")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.until - time.time()
    device = find_device(options.device)
    torch.set_num_threads(1)  # as a worker has them
    return Session(options.out, deadline, device, options.tiny, options.only)
