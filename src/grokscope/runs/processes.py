"""Jobs in processes of this machine, each of which takes one job after the other.

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
from typing import TYPE_CHECKING

from grokscope.runs.schedule import Job, RunFailedError
from grokscope.runs.store import Store
from grokscope.runs.worker import Progress, Throttle, run_job, told_of

if TYPE_CHECKING:
    from grokscope.runs.launch import Launch

Word = tuple[int, Progress | None]  # a process id, and what it says; None: its job has ended


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    line: Connection  # jobs go down here
    job: Job | None = None


class Processes:
    """A crew of worker processes.

    Args:
        store: Where results go.
        how: Threads, device, checkpoints.
        size: Processes at once, at most; each is started when there is a job for it.
    """

    def __init__(self, store: Store, how: Launch, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.context, self.store, self.how, self.size = context, store, how, size
        self.told: Queue[Word] = context.Queue()
        self.stop: Event = context.Event()
        self.workers: list[_Worker] = []
        self.gone: list[Job] = []
        self.lost: list[_Worker] = []

    @property
    def free(self) -> int:
        return self.size - sum(worker.job is not None for worker in self.workers)

    def start(self, job: Job) -> None:
        idle = (each for each in self.workers if each.job is None and each.process.is_alive())
        worker = next(idle, None) or self._hired()
        worker.job = job
        worker.line.send(job)

    def listen(self) -> list[Progress]:
        # Seen to have ended before the listening, not after it: all they said is heard.
        silent = [worker for worker in self.workers if not worker.process.is_alive()]
        heard = []
        for pid, progress in self._words():
            if progress is not None:
                heard.append(progress)
                continue
            (worker,) = (each for each in self.workers if each.process.pid == pid)
            if worker.job is not None:
                self.gone.append(worker.job)
            worker.job = None
        self.lost = [worker for worker in silent if worker.job is not None]
        return heard

    def leave(self) -> list[Job]:
        for worker in self.lost:
            code, job = worker.process.exitcode or 0, worker.job or ()
            cause = f"signal {-code}" if code < 0 else "an error"
            raise RunFailedError(
                f"the process of segment {', '.join(segment.id for segment in job)} ended by "
                f"{cause} (exit code {code}; signal 9 is often lack of memory). Run the same "
                "command again to go on."
            )
        gone, self.gone = self.gone, []
        return gone

    def close(self) -> None:
        """Ask the workers to stop and wait for their checkpoints."""
        self.stop.set()
        for worker in self.workers:
            with suppress(OSError):  # it may be gone
                worker.line.send(None)
        for worker in self.workers:
            while worker.process.is_alive():
                self.listen()  # a worker can't end while the pipe of its queue is full
                worker.process.join(timeout=0.1)
            worker.line.close()
        self.told.close()

    def _hired(self) -> _Worker:
        theirs, ours = self.context.Pipe(duplex=False)
        place = self.how.place(len(self.workers), self.size)
        arguments = (theirs, self.store.folder, self.how, place, self.told, self.stop, os.getpid())
        process = self.context.Process(target=_work, args=arguments, name="grokscope-worker")
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def _words(self) -> list[Word]:
        words = []
        try:
            words.append(self.told.get(timeout=0.2))
            while True:
                words.append(self.told.get_nowait())
        except queue.Empty:
            return words


def _work(
    line: Connection,
    folder: Path,
    how: Launch,
    place: tuple[str, float],
    told: Queue[Word],
    stop: Event,
    parent: int,
) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own, store = os.getpid(), Store(folder)
    with suppress(EOFError):  # the parent is gone
        while (job := line.recv()) is not None:
            try:
                run_job(
                    store,
                    job,
                    Throttle(lambda progress: told.put((own, progress))),
                    lambda: stop.is_set() or os.getppid() != parent,
                    how.checkpoint_seconds,
                    how.threads,
                    *place,
                )
            except Exception as error:
                told.put((own, Progress(job[0].id, 0, failure=told_of(error))))
            told.put((own, None))
