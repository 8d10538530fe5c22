"""Runs a job in this process: states in, checkpoints and results out."""

from __future__ import annotations

import datetime
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from grokscope.engine.alike import UnlikeError
from grokscope.engine.loop import Training
from grokscope.engine.memory import bytes_of, free_bytes
from grokscope.engine.observe import Row
from grokscope.engine.replicas import Replicas, Solo
from grokscope.engine.state import State
from grokscope.runs.jobs import Progress
from grokscope.runs.lease import LeaseLostError, SegmentBusyError
from grokscope.runs.machine import environment, find_device
from grokscope.runs.options import Place, RunOptions
from grokscope.runs.store import Store
from grokscope.spec import Segment
from grokscope.tasks import Task, build_task

OPTIONS, PLACE = RunOptions(), Place()
PACKAGE = Path(__file__).parents[1]


def run_job(
    store: Store,
    segments: Sequence[Segment],
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
    *,
    options: RunOptions = OPTIONS,
    place: Place = PLACE,
) -> None:
    """Run what is missing of segments of one shape, together as far as possible.

    Each resumes from its last checkpoint, else from the end of its parent, else starts anew.
    Those at different steps, or whose model cannot be batched, run one after another.

    Args:
        store: Where states and results are kept.
        segments: What to run; their parents must be finished.
        on_progress: Called at every tick; with ``busy`` for a segment that another process holds.
        should_stop: Asked at every tick; if true, checkpoints are written and the call returns.
        options: Threads (a checkpoint's own number wins, because sums depend on it in the last
            bit) and seconds between checkpoints (a killed process loses that much work at most,
            plus the time to the next tick).
        place: Device, and its share of memory for replicas.

    Raises:
        ValueError: If the device isn't there, or a file to resume from is damaged.
    """
    device = find_device(place.device)
    resumed: list[_Resumed] = []
    with ExitStack() as leases:
        for segment in segments:
            try:
                leases.enter_context(store.lock(segment))
            except SegmentBusyError:
                on_progress(Progress(segment.id, segment.start, busy=True))
                continue
            end = store.outcome(segment)
            if end is not None:  # finished by another process in the meantime
                on_progress(Progress(segment.id, end.step, finished=True, diverged=end.diverged))
                continue
            resumed.append(_Resumed(store, segment, options.threads))
        worker = _Worker(
            store=store,
            on_progress=on_progress,
            should_stop=should_stop,
            options=options,
            place=place,
            device=device,
        )
        groups: dict[tuple[int, int], list[_Resumed]] = {}
        for item in resumed:
            groups.setdefault((item.step, item.threads), []).append(item)
        for group in groups.values():
            if not worker.run_group(group):
                return


class _Resumed:
    """A segment whose lease is held, and the state from which it resumes."""

    def __init__(self, store: Store, segment: Segment, threads: int) -> None:
        self.segment, self.threads = segment, threads
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.state: State | None = None
        self.rows: list[Row] = []
        self.seconds = 0.0  # of work, before this process
        self.alone = ""  # why it is not trained with others, where that was tried
        store.sweep(segment)
        checkpoint = store.last_checkpoint(segment)
        if checkpoint is not None:
            self.state, self.rows, self.seconds = checkpoint
            self.threads = self.state.threads
        elif segment.parent is not None:
            self.state = store.state(segment.parent)
        self.step = 0 if self.state is None else self.state.step

    def task(self, device: torch.device) -> Task:
        return build_task(self.segment.run.task, self.segment.run.seeds).to(device)


@dataclass(frozen=True)
class _Worker:
    """Trains groups of segments that are at one step."""

    store: Store
    on_progress: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    options: RunOptions
    place: Place
    device: torch.device

    def run_group(self, group: Sequence[_Resumed]) -> bool:
        """Run segments at one step; false if asked to stop."""
        torch.set_num_threads(group[0].threads)
        size = self._size(group)
        starts = range(0, len(group), size)
        return all(self._run_together(group[first : first + size]) for first in starts)

    def _run_together(self, group: Sequence[_Resumed]) -> bool:
        try:
            trainer = self._trainer(group)
        except UnlikeError as error:
            for item in group:
                item.alone = str(error)
            return all(self._train(self._trainer([item]), [item]) for item in group)
        return self._train(trainer, group)

    def _size(self, group: Sequence[_Resumed]) -> int:
        """How many segments of a group memory has room for at once."""
        if len(group) == 1:
            return 1
        first = group[0]
        needed = bytes_of(Training(first.task(self.device), first.segment, first.state))
        free = free_bytes(self.device)
        share = self.place.memory_share
        return len(group) if free is None else max(1, int(share * free / needed))

    def _trainer(self, group: Sequence[_Resumed]) -> Replicas | Solo:
        tasks = [item.task(self.device) for item in group]
        if len(group) == 1:
            return Solo(Training(tasks[0], group[0].segment, group[0].state))
        segments, states = [item.segment for item in group], [item.state for item in group]
        return Replicas(tasks, segments, states)

    def _train(self, trainer: Replicas | Solo, group: Sequence[_Resumed]) -> bool:
        """Train to the end of the phase; false if asked to stop."""
        begin = saved = time.monotonic()
        active = set(range(len(group)))

        def seconds(index: int) -> float:
            return group[index].seconds + (time.monotonic() - begin) / len(group)

        @contextmanager
        def lease_may_be_lost(index: int) -> Iterator[None]:
            """Give up a segment whose lease is lost: another process runs it now."""
            try:
                yield
            except LeaseLostError:
                active.discard(index)
                item = group[index]
                self.on_progress(Progress(item.segment.id, item.step, busy=True))

        def finish(index: int, diverged: bool = False) -> None:
            item = group[index]
            state = trainer.state(index)
            facts = environment(item.segment, item.started, seconds(index), self.device)
            facts |= {"replicas": len(group)} | ({"alone": item.alone} if item.alone else {})
            if isinstance(trainer, Replicas) and trainer.measured_alone:
                facts["measured_alone"] = trainer.measured_alone
            self.store.finish(
                item.segment,
                state,
                item.rows,
                seconds=seconds(index),
                environment=facts,
                diverged=diverged,
            )
            active.discard(index)
            self.on_progress(
                Progress(item.segment.id, state.step, finished=True, diverged=diverged)
            )

        for ticks in trainer.run():
            for index in sorted(active & ticks.keys()):
                tick, item = ticks[index], group[index]
                name, diverged = item.segment.id, tick.diverged
                with lease_may_be_lost(index):
                    self.store.confirm(item.segment)
                    item.rows += tick.rows
                    values = {f"{row.split}/{row.measure}": row.value for row in tick.rows}
                    self.on_progress(Progress(name, tick.step, values, diverged=diverged))
                    if diverged:
                        finish(index, diverged=True)
            stopping = self.should_stop()
            if stopping or time.monotonic() - saved >= self.options.checkpoint_seconds:
                for index in sorted(active):
                    item, state = group[index], trainer.state(index)
                    with lease_may_be_lost(index):
                        self.store.checkpoint(item.segment, state, item.rows, seconds(index))
                saved = time.monotonic()
            if stopping or not active:
                return not stopping
        for index in sorted(active):
            with lease_may_be_lost(index):
                finish(index)
        return True


def describe_failure(error: Exception) -> str:
    """An error in a segment as text: our own sentence, else the traceback.

    A ValueError from elsewhere may be raised in the code of a user's task, and the user needs to
    see where. ``GROKSCOPE_TRACEBACK=1`` always asks for the traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = isinstance(error, ValueError) and PACKAGE in Path(frames[-1].filename).parents
    if is_ours and not os.environ.get("GROKSCOPE_TRACEBACK"):
        return str(error)
    return "".join(traceback.format_exception(error))
