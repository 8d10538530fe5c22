"""The missing segments of an experiment, run on this machine: one process per core.

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

from grokscope.runs.lease import Lease, SegmentBusyError
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.runs.worker import Progress, run_segment, told_of
from grokscope.spec import Experiment, Segment


class RunFailedError(RuntimeError):
    """At least one segment raised; the message is its error's, or its traceback (`told_of`)."""


@dataclass(frozen=True)
class Launch:
    """How to run.

    Attributes:
        workers: Processes at once; None chooses by cores and segments.
        threads: CPU threads of each.
        checkpoint_seconds: Work that is lost at most when a process is killed.
        device: Where models and data are; ``auto`` is CUDA where there is any.
    """

    workers: int | None = None
    threads: int = 1
    checkpoint_seconds: float = 30.0
    device: str = "auto"

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
) -> bool:
    """Run every missing segment; returns whether all are finished now.

    Segments that other processes run are left to them and waited for; those of a process that is
    gone are taken over.

    Args:
        experiment: What is asked for; remembered in the store.
        store: Where results go.
        how: Processes, threads, checkpoints.
        report: Called in this process with every worker's progress.

    Raises:
        RunFailedError: If a segment raised, after the others have been stopped with a checkpoint.
        KeyboardInterrupt: Passed on after the workers have left their checkpoints.
    """
    store.save_experiment(experiment)
    missing = Plan(experiment, store).missing()
    if not missing:
        return True
    pool = _Pool(store, how, how.processes(len(missing)))
    try:
        failure = pool.run(missing, report)
    finally:
        pool.close()
    if failure:
        raise RunFailedError(failure)
    return not Plan(experiment, store).missing()


class _Pool:
    """Worker processes, one for each segment under way, and what they tell."""

    def __init__(self, store: Store, how: Launch, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.context, self.store, self.how, self.size = context, store, how, size
        self.told: Queue[Progress] = context.Queue()
        self.stop: Event = context.Event()
        self.workers: dict[str, SpawnProcess] = {}
        self.busy: dict[str, tuple[Segment, Lease]] = {}  # run by other processes
        self.looked = 0.0

    def run(self, segments: list[Segment], report: Callable[[Progress], None]) -> str:
        """Run segments as their parents finish; returns what a failure says, or ""."""
        waiting = {segment.id: segment for segment in segments}
        known = dict(waiting)
        ended: set[str] = set()  # and so may not be waited for
        while waiting or self.workers or self.busy:
            for segment in list(waiting.values()):
                parent = segment.parent
                if segment.id in self.workers:
                    continue  # it has said that another process runs it, and is about to end
                if parent is not None and any(
                    parent.id in each for each in (waiting, self.workers, self.busy)
                ):
                    continue
                if parent is not None and parent.id in ended:
                    del waiting[segment.id]  # its parent diverged
                    ended.add(segment.id)
                elif len(self.workers) < self.size:
                    self._start(waiting.pop(segment.id))
            # Seen to have ended before the listening, not after it: all they said is heard.
            silent = [key for key, worker in self.workers.items() if not worker.is_alive()]
            for progress in self._listen():
                if progress.failure:
                    return progress.failure
                if progress.diverged:
                    ended.add(progress.segment)
                if progress.busy:
                    of = known[progress.segment]
                    self.busy[of.id] = (of, self.store.lease(of))
                report(progress)
            for progress in self._look():
                if progress.diverged:
                    ended.add(progress.segment)
                if progress.finished:
                    report(progress)
                else:
                    waiting[progress.segment] = known[progress.segment]
            failure = self._reap(silent)
            if failure:
                return failure
        return ""

    def _start(self, segment: Segment) -> None:
        worker = self.context.Process(
            target=_work,
            args=(self.store.folder, segment, self.how, self.told, self.stop, os.getpid()),
            name=f"grokscope-{segment.id}",
        )
        worker.start()
        self.workers[segment.id] = worker

    def _look(self) -> list[Progress]:
        """The segments of others that are finished, or free, once a second."""
        if time.monotonic() - self.looked < 1:
            return []
        self.looked = time.monotonic()
        seen = []
        for key, (segment, lease) in list(self.busy.items()):
            outcome = self.store.outcome(segment)
            if outcome is not None:
                seen.append(Progress(key, outcome.step, finished=True, diverged=outcome.diverged))
            elif lease.take():
                lease.free()  # for the worker, which holds it as long as it runs
                seen.append(Progress(key, segment.start))
            else:
                continue
            del self.busy[key]
        return seen

    def _listen(self) -> list[Progress]:
        heard = []
        try:
            heard.append(self.told.get(timeout=0.2))
            while True:
                heard.append(self.told.get_nowait())
        except queue.Empty:
            return heard

    def _reap(self, ended: list[str]) -> str:
        for key in ended:
            worker = self.workers.pop(key)
            worker.join()
            if worker.exitcode:
                cause = f"signal {-worker.exitcode}" if worker.exitcode < 0 else "an error"
                return (
                    f"the process of segment {key} ended by {cause} (exit code {worker.exitcode}; "
                    "signal 9 is often lack of memory). Run the same command again to go on."
                )
        return ""

    def close(self) -> None:
        """Ask the workers to stop and wait for their checkpoints, however often Ctrl-C comes."""
        self.stop.set()
        previous = _ignore_interrupts()
        for worker in self.workers.values():
            while worker.is_alive():
                self._listen()  # a worker can't end while the pipe of its queue is full
                worker.join(timeout=0.1)
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
        self.told.close()


def _ignore_interrupts() -> signal.Handlers | Callable[..., object] | int | None:
    try:
        return signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        return None


def _work(
    folder: Path,
    segment: Segment,
    how: Launch,
    told: Queue[Progress],
    stop: Event,
    parent: int,
) -> None:
    """Body of a worker process."""
    _ignore_interrupts()
    throttle = _Throttle(told)
    try:
        run_segment(
            Store(folder),
            segment,
            throttle,
            lambda: stop.is_set() or os.getppid() != parent,
            how.checkpoint_seconds,
            how.threads,
            how.device,
        )
    except SegmentBusyError:
        told.put(Progress(segment.id, segment.start, busy=True))
    except Exception as error:
        told.put(Progress(segment.id, 0, failure=told_of(error)))


class _Throttle:
    """Passes on what matters at once and mere steps at most five times a second."""

    def __init__(self, told: Queue[Progress]) -> None:
        self.told = told
        self.last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.values or progress.finished or progress.diverged or now - self.last > 0.2:
            self.told.put(progress)
            self.last = now
