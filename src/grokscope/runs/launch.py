"""The missing segments of an experiment, run on this machine (one process per core) or by Ray.

Workers ignore Ctrl-C; their parent asks them to stop, and they leave a checkpoint. A worker whose
parent was killed notices and does the same.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from grokscope.runs.plan import Plan
from grokscope.runs.schedule import Job, RunFailedError, Schedule, work_off
from grokscope.runs.store import Store
from grokscope.runs.worker import Progress, run_job, told_of
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
        from grokscope.runs.worker import find_device

        return REPLICAS if find_device(self.device).type == "cuda" else 1

    def processes(self, segments: int) -> int:
        """How many workers to start for so many segments.

        One for each core; where the rest of the division would leave cores idle, that rest runs
        along and the system shares the cores out: three segments on two cores take 1.5 rounds,
        not 2.
        """
        cores = max(1, _cores() // self.threads)
        if self.workers is not None:
            return max(1, min(self.workers, segments))
        return min(segments, cores + segments % cores)


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
    crew: _Processes | RayCrew
    if how.on == "ray":
        from grokscope.runs import cluster

        crew = cluster.RayCrew(store, how)
        together = crew.how.together()
    else:
        together = how.together()
        crew = _Processes(store, how, how.processes(-(-len(missing) // together)))
    try:
        work_off(Schedule(missing, store, together), crew, report, tell)
    finally:
        previous = _ignore_interrupts()  # checkpoints are left, however often Ctrl-C comes
        crew.close()
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
    return not Plan(experiment, store).missing()


class _Processes:
    """Worker processes, one for each job under way, and what they tell."""

    def __init__(self, store: Store, how: Launch, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.context, self.store, self.how, self.size = context, store, how, size
        self.told: Queue[Progress] = context.Queue()
        self.stop: Event = context.Event()
        self.workers: list[tuple[Job, SpawnProcess]] = []
        self.silent: list[tuple[Job, SpawnProcess]] = []

    @property
    def free(self) -> int:
        return self.size - len(self.workers)

    def start(self, job: Job) -> None:
        worker = self.context.Process(
            target=_work,
            args=(self.store.folder, job, self.how, self.told, self.stop, os.getpid()),
            name=f"grokscope-{job[0].id}",
        )
        worker.start()
        self.workers.append((job, worker))

    def listen(self) -> list[Progress]:
        # Seen to have ended before the listening, not after it: all they said is heard.
        self.silent = [each for each in self.workers if not each[1].is_alive()]
        heard = []
        try:
            heard.append(self.told.get(timeout=0.2))
            while True:
                heard.append(self.told.get_nowait())
        except queue.Empty:
            return heard

    def leave(self) -> list[Job]:
        for each in self.silent:
            self.workers.remove(each)
            job, worker = each
            worker.join()
            if worker.exitcode:
                cause = f"signal {-worker.exitcode}" if worker.exitcode < 0 else "an error"
                names = ", ".join(segment.id for segment in job)
                raise RunFailedError(
                    f"the process of segment {names} ended by {cause} (exit code "
                    f"{worker.exitcode}; signal 9 is often lack of memory). Run the same command "
                    "again to go on."
                )
        gone, self.silent = [job for job, _ in self.silent], []
        return gone

    def close(self) -> None:
        """Ask the workers to stop and wait for their checkpoints."""
        self.stop.set()
        for _, worker in self.workers:
            while worker.is_alive():
                self.listen()  # a worker can't end while the pipe of its queue is full
                worker.join(timeout=0.1)
        self.told.close()


def _ignore_interrupts() -> signal.Handlers | Callable[..., object] | int | None:
    try:
        return signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        return None


def _work(
    folder: Path,
    job: Job,
    how: Launch,
    told: Queue[Progress],
    stop: Event,
    parent: int,
) -> None:
    """Body of a worker process."""
    _ignore_interrupts()
    throttle = _Throttle(told)
    try:
        run_job(
            Store(folder),
            job,
            throttle,
            lambda: stop.is_set() or os.getppid() != parent,
            how.checkpoint_seconds,
            how.threads,
            how.device,
        )
    except Exception as error:
        told.put(Progress(job[0].id, 0, failure=told_of(error)))


class _Throttle:
    """Passes on what matters at once and mere steps at most five times a second."""

    def __init__(self, told: Queue[Progress]) -> None:
        self.told = told
        self.last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress != Progress(progress.segment, progress.step) or now - self.last > 0.2:
            self.told.put(progress)
            self.last = now
