"""Jobs in processes of this machine, each of which takes one job after another.

A worker has one pipe to its parent: jobs come down, progress goes up. Workers ignore Ctrl-C. What
comes down while a job runs means stop, and so does the end of the pipe, where the parent was
killed: the worker leaves a checkpoint and ends.
"""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from grokscope.runs.jobs import Job, Progress, RunFailedError, Throttle
from grokscope.runs.options import Place, RunOptions
from grokscope.runs.store import Store
from grokscope.runs.worker import describe_failure, run_job


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: Connection  # jobs go down, then None; progress comes up, and None at the end of a job
    job: Job | None = None

    def receive(self) -> list[Progress | None]:
        """What has come up the pipe; nothing if the process has ended."""
        messages = []
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                messages.append(self.pipe.recv())
        return messages


class LocalExecutor:
    """Worker processes on this machine.

    Args:
        store: Where results go.
        options: Workers, threads, device and checkpoints.
        segments: How many segments there are to run; no more workers are started than they need.
    """

    def __init__(self, store: Store, options: RunOptions, segments: int) -> None:
        self.store, self.options = store, options
        self.size = options.worker_count(-(-segments // options.replicas_per_job))
        self.workers: list[_Worker] = []
        self.ended: list[Job] = []
        self.lost: list[_Worker] = []

    @property
    def free_slots(self) -> int:
        return self.size - sum(worker.job is not None for worker in self.workers)

    def submit(self, job: Job) -> None:
        idle = (
            worker for worker in self.workers if worker.job is None and worker.process.is_alive()
        )
        worker = next(idle, None) or self._start_worker()
        worker.job = job
        worker.pipe.send(job)

    def poll(self) -> list[Progress]:
        # Seen to have ended before the messages are read, not after: none of theirs is missed.
        dead = [worker for worker in self.workers if not worker.process.is_alive()]
        wait([worker.pipe for worker in self.workers if worker not in dead], timeout=0.2)
        news = []
        for worker in self.workers:
            for progress in worker.receive():
                if progress is not None:
                    news.append(progress)
                elif worker.job is not None:
                    self.ended.append(worker.job)
                    worker.job = None
        self.lost = [worker for worker in dead if worker.job is not None]
        return news

    def done(self) -> list[Job]:
        for worker in self.lost:
            code, job = worker.process.exitcode or 0, worker.job or ()
            cause = f"signal {-code}" if code < 0 else "an error"
            raise RunFailedError(
                f"the process of segment {', '.join(segment.id for segment in job)} was ended by "
                f"{cause} (exit code {code}; signal 9 often means that memory ran out). Run the "
                "same command again to resume."
            )
        ended, self.ended = self.ended, []
        return ended

    def shutdown(self) -> None:
        for worker in self.workers:
            with suppress(OSError):  # the process may have ended
                worker.pipe.send(None)
        for worker in self.workers:
            while worker.process.is_alive():
                self.poll()  # a worker can't end while its pipe is full
                worker.process.join(timeout=0.1)
            worker.pipe.close()

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        place = self.options.place(len(self.workers), self.size)
        process = context.Process(
            target=_work,
            args=(there, self.store.folder, self.options, place),
            name="grokscope-worker",
        )
        process.start()
        there.close()
        self.workers.append(_Worker(process, here))
        return self.workers[-1]


def _work(pipe: Connection, folder: Path, options: RunOptions, place: Place) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(progress: Progress | None) -> None:
        with suppress(OSError):  # the parent was killed: a checkpoint is still to be left
            pipe.send(progress)

    with suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            try:
                run_job(Store(folder), job, Throttle(send), pipe.poll, options=options, place=place)
            except Exception as error:
                send(Progress(job[0].id, 0, failure=describe_failure(error)))
            send(None)
