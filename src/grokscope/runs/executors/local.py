"""Jobs in processes of this machine, each of which takes one job after another.

Workers ignore Ctrl-C; their parent asks them to stop, and they leave a checkpoint. A worker whose
parent was killed notices and does the same.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

from grokscope.runs.executors.base import Job, RunFailedError
from grokscope.runs.options import Place, RunOptions
from grokscope.runs.progress import Progress, Throttle
from grokscope.runs.store import Store
from grokscope.runs.worker import describe_failure, run_job

Message = tuple[int, Progress | None]  # a process id and its progress; None: its job has ended


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    jobs: Connection  # jobs are sent down here; None ends the process
    job: Job | None = None


@dataclass(frozen=True)
class _Context:
    """What a worker process must know besides its jobs."""

    folder: Path
    options: RunOptions
    place: Place
    messages: Queue[Message]
    stop: Event
    parent: int


class LocalExecutor:
    """Worker processes on this machine.

    Args:
        store: Where results go.
        options: Workers, threads, device and checkpoints.
        segments: How many segments there are to run; no more workers are started than they need.
    """

    def __init__(self, store: Store, options: RunOptions, segments: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.context, self.store, self.options = context, store, options
        self.size = options.worker_count(-(-segments // options.replicas_per_job))
        self.messages: Queue[Message] = context.Queue()
        self.stop: Event = context.Event()
        self.workers: list[_Worker] = []
        self.ended: list[Job] = []
        self.lost: list[_Worker] = []

    @property
    def free_slots(self) -> int:
        return self.size - sum(worker.job is not None for worker in self.workers)

    @property
    def replicas_per_job(self) -> int:
        return self.options.replicas_per_job

    def submit(self, job: Job) -> None:
        idle = (
            worker for worker in self.workers if worker.job is None and worker.process.is_alive()
        )
        worker = next(idle, None) or self._start_worker()
        worker.job = job
        worker.jobs.send(job)

    def poll(self) -> list[Progress]:
        # Seen to have ended before the messages are read, not after: none of theirs is missed.
        dead = [worker for worker in self.workers if not worker.process.is_alive()]
        news = []
        for pid, progress in self._receive():
            if progress is not None:
                news.append(progress)
                continue
            (worker,) = (worker for worker in self.workers if worker.process.pid == pid)
            if worker.job is not None:
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
        self.stop.set()
        for worker in self.workers:
            with suppress(OSError):  # the process may have ended
                worker.jobs.send(None)
        for worker in self.workers:
            while worker.process.is_alive():
                self.poll()  # a worker can't end while the pipe of its queue is full
                worker.process.join(timeout=0.1)
            worker.jobs.close()
        self.messages.close()

    def _start_worker(self) -> _Worker:
        receiver, sender = self.context.Pipe(duplex=False)
        context = _Context(
            folder=self.store.folder,
            options=self.options,
            place=self.options.place(len(self.workers), self.size),
            messages=self.messages,
            stop=self.stop,
            parent=os.getpid(),
        )
        process = self.context.Process(
            target=_work, args=(receiver, context), name="grokscope-worker"
        )
        process.start()
        receiver.close()
        self.workers.append(_Worker(process, sender))
        return self.workers[-1]

    def _receive(self) -> list[Message]:
        messages = []
        try:
            messages.append(self.messages.get(timeout=0.2))
            while True:
                messages.append(self.messages.get_nowait())
        except queue.Empty:
            return messages


def _work(jobs: Connection, context: _Context) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid, store = os.getpid(), Store(context.folder)

    def should_stop() -> bool:
        return context.stop.is_set() or os.getppid() != context.parent

    with suppress(EOFError):  # the parent was killed
        while (job := jobs.recv()) is not None:
            try:
                run_job(
                    store,
                    job,
                    Throttle(lambda progress: context.messages.put((pid, progress))),
                    should_stop,
                    options=context.options,
                    place=context.place,
                )
            except Exception as error:
                failure = Progress(job[0].id, 0, failure=describe_failure(error))
                context.messages.put((pid, failure))
            context.messages.put((pid, None))
