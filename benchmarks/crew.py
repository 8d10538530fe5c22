"""Processes that make steps side by side, and wait for each other between rounds."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch


class Crew:
    """So many processes, each with a step of its own, on one thread each.

    Args:
        prepare: Makes the step; a function of a module, called in each process.
        size: How many processes.
    """

    def __init__(self, prepare: Callable[[], Callable[[], object]], size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.lines: list[Connection] = []
        self.processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(prepare, theirs), daemon=True)
            process.start()
            self.lines.append(ours)
            self.processes.append(process)
        self(1)  # all are ready

    def __call__(self, steps: int = 1) -> float:
        """Let each make so many steps; returns when the last is done, with the seconds taken."""
        start = time.perf_counter()
        for line in self.lines:
            line.send(steps)
        for line in self.lines:
            line.recv()
        return time.perf_counter() - start

    def close(self) -> None:
        """Let them go."""
        for line, process in zip(self.lines, self.processes, strict=True):
            line.send(0)
            process.join()


def _work(prepare: Callable[[], Callable[[], object]], line: Connection) -> None:
    torch.set_num_threads(1)
    step = prepare()
    step()
    while count := line.recv():
        for _ in range(count):
            step()
        line.send(count)
