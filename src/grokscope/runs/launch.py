"""The missing segments of an experiment, run on this machine (one process per core) or by Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from grokscope.runs.plan import Plan
from grokscope.runs.processes import Processes
from grokscope.runs.schedule import RunFailedError, Schedule, ignoring_interrupts, work_off
from grokscope.runs.store import Store
from grokscope.runs.worker import SHARE_OF_MEMORY, Progress
from grokscope.spec import Experiment

if TYPE_CHECKING:
    from grokscope.runs.cluster import RayCrew

__all__ = ["Launch", "RunFailedError", "launch"]

REPLICAS = 32  # on a GPU, at most


@dataclass(frozen=True)
class Launch:
    """How to run.

    Attributes:
        workers: Processes at once; None chooses by cores and segments.
        threads: CPU threads of each.
        checkpoint_seconds: Work that is lost at most when a process is killed.
        device: Where models and data are; ``auto`` is CUDA where there is any.
        replicas: Segments of one shape that one process trains together, at most and as far as
            memory goes; None: one on a CPU, where processes beside each other are faster
            (docs/benchmarks.md), and `REPLICAS` on a GPU.
        on: This machine, or a Ray cluster.
        address: Of the cluster, as Ray writes it; None starts one on this machine.

    Raises:
        ValueError: If there is an address but no cluster is asked for.
    """

    workers: int | None = None
    threads: int = 1
    checkpoint_seconds: float = 30.0
    device: str = "auto"
    replicas: int | None = None
    on: Literal["local", "ray"] = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.on not in ("local", "ray"):
            raise ValueError(f"--on {self.on}: write local or ray")
        if self.address is not None and self.on != "ray":
            raise ValueError(f"--address {self.address} names a Ray cluster: add --on ray")

    def together(self) -> int:
        """How many segments of one shape may make one job."""
        if self.replicas is not None:
            return self.replicas
        return REPLICAS if self.gpus else 1

    def processes(self, segments: int) -> int:
        """How many workers to start for so many segments.

        One for each GPU; else one for each core, and where the rest of the division would leave
        cores idle, that rest runs along and the system shares the cores out: three segments on two
        cores take 1.5 rounds, not 2.
        """
        if self.workers is not None:
            return max(1, min(self.workers, segments))
        if self.gpus:
            return min(segments, self.gpus)
        cores = max(1, _cores() // self.threads)
        return min(segments, cores + segments % cores)

    def place(self, worker: int, workers: int) -> tuple[str, float]:
        """The device of a worker, one of ``workers``, and its share of the memory there."""
        if not self.gpus:
            return self.device, SHARE_OF_MEMORY / workers
        named = self.device if ":" in self.device else f"cuda:{worker % self.gpus}"
        return named, SHARE_OF_MEMORY / -(-workers // self.gpus)

    @property
    def gpus(self) -> int:
        """How many GPUs of this machine are meant."""
        if self.device.startswith("cuda:"):
            return 1
        return torch.cuda.device_count() if self.device in ("auto", "cuda") else 0


def _cores() -> int:
    """Cores that this process may use; where the system does not tell, all there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def launch(
    experiment: Experiment,
    store: Store,
    how: Launch,
    report: Callable[[Progress], None],
    tell: Callable[[str], None] = print,
) -> bool:
    """Run every missing segment; returns whether all are finished now.

    Several processes may do so on one store: each segment is run by one of them.

    Args:
        experiment: What is asked for; remembered in the store.
        store: Where results go.
        how: Processes, threads, checkpoints.
        report: Called in this process with every worker's progress.
        tell: Called with a sentence when there is nothing left but to wait for another process.

    Raises:
        RunFailedError: If a segment raised, after the others have been stopped with a checkpoint.
        KeyboardInterrupt: Passed on after the workers have left their checkpoints.
    """
    store.save_experiment(experiment)
    missing = Plan(experiment, store).missing()
    if not missing:
        return True
    crew: Processes | RayCrew
    if how.on == "ray":
        from grokscope.runs import cluster

        crew = cluster.RayCrew(store, how)
        together = crew.how.together()
    else:
        together = how.together()
        crew = Processes(store, how, how.processes(-(-len(missing) // together)))
    try:
        work_off(Schedule(missing, store, together), crew, report, tell)
    finally:
        with ignoring_interrupts():  # checkpoints are left, however often Ctrl-C comes
            crew.close()
    return not Plan(experiment, store).missing()
