"""Runs a job in this process: states in, checkpoints and results out."""

from __future__ import annotations

import datetime
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grokscope.engine.alike import UnlikeError
from grokscope.engine.loop import Training
from grokscope.engine.memory import bytes_of, free_bytes
from grokscope.engine.observe import Row
from grokscope.engine.replicas import Replicas
from grokscope.engine.state import State
from grokscope.engine.streams import Streams
from grokscope.runs.jobs import Progress
from grokscope.runs.lease import LeaseLostError, SegmentBusyError
from grokscope.runs.machine import environment, find_device
from grokscope.runs.options import Place, RunOptions
from grokscope.runs.store import Store
from grokscope.spec import Segment
from grokscope.tasks import Split, Task, build_task

OPTIONS, PLACE = RunOptions(), Place()
CONFIRM_SECONDS = 1.0  # between two looks at a lease
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
    """Run what is missing of some segments, together as far as possible.

    Each resumes from its last checkpoint, else from the end of its parent, else starts anew. As
    replicas, those at different steps, or whose model cannot be batched, run one after another.

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
            data=SharedData(),
        )
        worker.run(resumed)


class _Resumed:
    """A segment whose lease is held, and the state from which it resumes."""

    def __init__(self, store: Store, segment: Segment, threads: int) -> None:
        self.segment, self.threads = segment, threads
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.state: State | None = None
        self.rows: list[Row] = []
        self.seconds = 0.0  # of work, in earlier processes and in this one
        self.alone = ""  # why it is not trained with others, where that was tried
        store.sweep(segment)
        checkpoint = store.last_checkpoint(segment)
        if checkpoint is not None:
            self.state, self.rows, self.seconds = checkpoint
            self.threads = self.state.threads
        elif segment.parent is not None:
            self.state = store.state(segment.parent)
        self.step = 0 if self.state is None else self.state.step

    @property
    def task_and_batch(self) -> tuple[str, int]:
        """What the memory that is needed depends on, above all."""
        return self.segment.run.task.model_dump_json(), self.segment.run.batch_size

    def task(self) -> Task:
        return build_task(self.segment.run.task, self.segment.run.seeds)


class SharedData:
    """The data of tasks on a device: runs on equal data share one copy."""

    def __init__(self) -> None:
        self._splits: dict[tuple[str, str], list[tuple[Split, Split]]] = {}

    def shared(self, task: Task, segment: Segment, device: torch.device) -> Task:
        """The task on a device, with the splits of an earlier one where these are equal."""
        kind = segment.run.task.model_dump_json()
        splits: dict[str, Any] = {
            name: self._placed((kind, name), split, device)
            for name in ("train", "validation", "test")
            if (split := getattr(task, name)) is not None
        }
        return replace(task, model=task.model.to(device), **splits)

    def _placed(self, key: tuple[str, str], split: Split, device: torch.device) -> Split:
        known = self._splits.setdefault(key, [])
        for here, there in known:
            if split.equals(here):
                return there
        known.append((split, split.to(device)))
        return known[-1][1]


@dataclass(frozen=True)
class _Worker:
    """Trains segments of one job."""

    store: Store
    on_progress: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    options: RunOptions
    place: Place
    device: torch.device
    data: SharedData

    def run(self, resumed: Sequence[_Resumed]) -> None:
        """Run segments, as many at once as can be."""
        groups: dict[tuple[int, ...], list[_Resumed]] = {}
        for item in resumed:
            key = (item.threads,) if self.uses_streams else (item.threads, item.step)
            groups.setdefault(key, []).append(item)
        for group in groups.values():
            torch.set_num_threads(group[0].threads)
            size = self._size(group)
            for first in range(0, len(group), size):
                if not self._run_together(group[first : first + size]):
                    return

    @property
    def uses_streams(self) -> bool:
        return self.options.uses_streams(self.device.type)

    def _run_together(self, group: Sequence[_Resumed]) -> bool:
        """Run segments at once; false if asked to stop."""
        if self.uses_streams or len(group) == 1:
            return self._train(self._streams(group), group)
        tasks, segments, states = self._parts(group)
        try:
            replicas = Replicas(tasks, segments, states)
        except UnlikeError as error:
            for item in group:
                item.alone = str(error)
            return all(self._train(self._streams([item]), [item]) for item in group)
        return self._train(replicas, group)

    def _streams(self, group: Sequence[_Resumed]) -> Streams:
        return Streams(*self._parts(group))

    def _parts(
        self, group: Sequence[_Resumed]
    ) -> tuple[list[Task], list[Segment], list[State | None]]:
        tasks = [self.data.shared(item.task(), item.segment, self.device) for item in group]
        return tasks, [item.segment for item in group], [item.state for item in group]

    def _size(self, group: Sequence[_Resumed]) -> int:
        """How many segments of a group memory has room for at once."""
        if len(group) == 1:
            return 1
        kinds = {item.task_and_batch: item for item in group}
        parts = zip(*self._parts(list(kinds.values())), strict=True)
        needed = max(bytes_of(Training(*of_item)) for of_item in parts)
        free = free_bytes(self.device)
        share = self.place.memory_share
        return len(group) if free is None else max(1, int(share * free / needed))

    def _train(self, trainer: Replicas | Streams, group: Sequence[_Resumed]) -> bool:
        """Train to the end of the phase; false if asked to stop."""
        counted = saved = confirmed = time.monotonic()
        active = set(range(len(group)))

        def count_seconds() -> None:
            """Share the time since the last call among the segments that are running."""
            nonlocal counted
            now = time.monotonic()
            for index in active:
                group[index].seconds += (now - counted) / len(active)
            counted = now

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
            facts = environment(item.segment, item.started, item.seconds, self.device)
            facts |= {"replicas": len(group)} | trainer.facts(index)
            if len(group) == 1:
                del facts["together"]
            facts |= {"alone": item.alone} if item.alone else {}
            self.store.finish(
                item.segment,
                state,
                item.rows,
                seconds=item.seconds,
                environment=facts,
                diverged=diverged,
            )
            active.discard(index)
            self.on_progress(
                Progress(item.segment.id, state.step, finished=True, diverged=diverged)
            )

        for ticks in trainer.run():
            count_seconds()
            confirms = time.monotonic() - confirmed >= CONFIRM_SECONDS
            confirmed = time.monotonic() if confirms else confirmed
            for index in sorted(active & ticks.keys()):
                tick, item = ticks[index], group[index]
                name, diverged = item.segment.id, tick.diverged
                with lease_may_be_lost(index):
                    if confirms:
                        self.store.confirm(item.segment)
                    item.rows += tick.rows
                    values = {f"{row.split}/{row.measure}": row.value for row in tick.rows}
                    self.on_progress(Progress(name, tick.step, values, diverged=diverged))
                    if diverged:
                        finish(index, diverged=True)
            for index in sorted(active & ticks.keys()):
                if ticks[index].step == group[index].segment.phase.until:
                    with lease_may_be_lost(index):
                        finish(index)
            stopping = self.should_stop()
            if stopping or time.monotonic() - saved >= self.options.checkpoint_seconds:
                for index in sorted(active):
                    item, state = group[index], trainer.state(index)
                    with lease_may_be_lost(index):
                        self.store.checkpoint(item.segment, state, item.rows, item.seconds)
                saved = time.monotonic()
            if stopping or not active:
                return not stopping
        for index in sorted(active):  # at their end already when they were resumed
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
