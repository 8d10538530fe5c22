"""Segments run to their end in this process: states in, checkpoints and results out."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import grokscope
from grokscope.engine.alike import UnlikeError
from grokscope.engine.loop import Training
from grokscope.engine.memory import bytes_of, free_bytes
from grokscope.engine.observe import Row
from grokscope.engine.replicas import Replicas, Solo
from grokscope.engine.state import State
from grokscope.runs.lease import LeaseLostError, SegmentBusyError, busy_error
from grokscope.runs.store import Store
from grokscope.spec import Segment
from grokscope.tasks import Task, build_task

SHARE_OF_MEMORY = 0.8  # of what is free, for replicas


@dataclass(frozen=True)
class Progress:
    """What a reader of the progress bar wants to know of one segment."""

    segment: str
    step: int
    values: dict[str, float] = field(default_factory=dict)  # "split/measure" -> latest value
    finished: bool = False
    diverged: bool = False
    busy: bool = False  # another process runs it
    failure: str = ""


class Throttle:
    """Passes on what matters at once; of each segment, mere steps at most five times a second."""

    def __init__(self, told: Callable[[Progress], None]) -> None:
        self.told = told
        self.last: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        now, bare = time.monotonic(), Progress(progress.segment, progress.step)
        if progress != bare or now - self.last.get(progress.segment, -1.0) > 0.2:
            self.told(progress)
            self.last[progress.segment] = now


def run_segment(
    store: Store,
    segment: Segment,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float = 30.0,
    threads: int = 1,
    device: str = "cpu",
) -> bool:
    """Run what is missing of a segment; returns whether it is finished now.

    As `run_job` with one segment.

    Raises:
        SegmentBusyError: If another process is running this segment.
    """
    busy: list[Progress] = []

    def heard(progress: Progress) -> None:
        (busy.append if progress.busy else report)(progress)

    run_job(store, (segment,), heard, stop, checkpoint_seconds, threads, device)
    if busy:
        raise busy_error(segment.id, store.folder)
    return store.outcome(segment) is not None


def run_job(
    store: Store,
    segments: Sequence[Segment],
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float = 30.0,
    threads: int = 1,
    device: str = "cpu",
    share: float = SHARE_OF_MEMORY,
) -> None:
    """Run what is missing of segments of one shape, together as far as they can be.

    Each goes on from its last checkpoint, else from the end of its parent, else from the start.
    Those at different steps, or whose model cannot be batched, run one after the other.

    Args:
        store: Where states and results live.
        segments: What to run; their parents must be finished.
        report: Called at every tick; with ``busy`` for a segment that another process holds.
        stop: Asked at every tick; a true answer makes checkpoints and returns.
        checkpoint_seconds: Work that a killed process loses, at most, in seconds (plus the time
            to the next tick).
        threads: CPU threads. A checkpoint's own number wins: sums depend on it in the last bit.
        device: As of `find_device`.
        share: Of the memory that is free there, for replicas.

    Raises:
        ValueError: If the device isn't there, or a file to go on from is damaged.
    """
    place = find_device(device)
    begun: list[_Begun] = []
    with ExitStack() as held:
        for segment in segments:
            try:
                held.enter_context(store.lock(segment))
            except SegmentBusyError:
                report(Progress(segment.id, segment.start, busy=True))
                continue
            outcome = store.outcome(segment)
            if outcome is not None:  # finished by another process in the meantime
                report(Progress(segment.id, outcome.step, finished=True, diverged=outcome.diverged))
                continue
            begun.append(_Begun(store, segment, threads))
        run = _Run(store, report, stop, checkpoint_seconds, place, share)
        alike: dict[tuple[int, int], list[_Begun]] = {}
        for each in begun:
            alike.setdefault((each.step, each.threads), []).append(each)
        for group in alike.values():
            if not run.all_of(group):
                return


class _Begun:
    """A segment whose lease is held, and where it goes on."""

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
class _Run:
    """How segments are run, whichever they are."""

    store: Store
    report: Callable[[Progress], None]
    stop: Callable[[], bool]
    checkpoint_seconds: float
    device: torch.device
    share: float

    def all_of(self, group: Sequence[_Begun]) -> bool:
        """Run segments at one step; false if asked to stop."""
        torch.set_num_threads(group[0].threads)
        size = self._size(group)
        for first in range(0, len(group), size):
            if not self._run_together(group[first : first + size]):
                return False
        return True

    def _run_together(self, group: Sequence[_Begun]) -> bool:
        try:
            trainer = self._trainer(group)
        except UnlikeError as error:
            for each in group:
                each.alone = str(error)
            return all(self._train(self._trainer([each]), [each]) for each in group)
        return self._train(trainer, group)

    def _size(self, group: Sequence[_Begun]) -> int:
        """How many of a group memory has room for at once."""
        if len(group) == 1:
            return 1
        first = group[0]
        needed = bytes_of(Training(first.task(self.device), first.segment, first.state))
        free = free_bytes(self.device)
        return len(group) if free is None else max(1, int(self.share * free / needed))

    def _trainer(self, group: Sequence[_Begun]) -> Replicas | Solo:
        tasks = [each.task(self.device) for each in group]
        if len(group) == 1:
            return Solo(Training(tasks[0], group[0].segment, group[0].state))
        segments, states = [each.segment for each in group], [each.state for each in group]
        return Replicas(tasks, segments, states)

    def _train(self, trainer: Replicas | Solo, group: Sequence[_Begun]) -> bool:
        """Train to the end of the phase; false if asked to stop."""
        begin = saved = time.monotonic()
        under_way = set(range(len(group)))

        def seconds(place: int) -> float:
            return group[place].seconds + (time.monotonic() - begin) / len(group)

        def ours(place: int, step: int, write: Callable[[], None] | None = None) -> bool:
            """Write if the lease is still held; else others run the segment now."""
            try:
                (write or (lambda: self.store.confirm(group[place].segment)))()
            except LeaseLostError:
                under_way.discard(place)
                self.report(Progress(group[place].segment.id, step, busy=True))
                return False
            return True

        def checkpoint(place: int) -> None:
            own = group[place]
            self.store.checkpoint(own.segment, trainer.state(place), own.rows, seconds(place))

        def finish(place: int, diverged: bool) -> None:
            own = group[place]
            state = trainer.state(place)
            facts = environment(own.segment, own.started, seconds(place), self.device)
            facts |= {"replicas": len(group)} | ({"alone": own.alone} if own.alone else {})
            if isinstance(trainer, Replicas) and trainer.measured_alone:
                facts["measured_alone"] = trainer.measured_alone
            self.store.finish(own.segment, state, own.rows, seconds(place), facts, diverged)
            under_way.discard(place)
            self.report(Progress(own.segment.id, state.step, finished=True, diverged=diverged))

        for ticks in trainer.run():
            for place in sorted(under_way & ticks.keys()):
                tick, own = ticks[place], group[place]
                if not ours(place, tick.step):
                    continue
                own.rows += tick.rows
                values = _latest(tick.rows)
                self.report(Progress(own.segment.id, tick.step, values, diverged=tick.diverged))
                if tick.diverged:
                    ours(place, tick.step, partial(finish, place, diverged=True))
            stopping = self.stop()
            if stopping or time.monotonic() - saved >= self.checkpoint_seconds:
                for place in sorted(under_way):
                    ours(place, 0, partial(checkpoint, place))
                saved = time.monotonic()
            if stopping or not under_way:
                return not stopping
        for place in sorted(under_way):
            ours(place, 0, partial(finish, place, diverged=False))
        return True


def told_of(error: Exception) -> str:
    """What is told of an error in a segment: our own sentence, else where it happened, too.

    A ValueError that comes from elsewhere may lie in the code of somebody's task, who needs the
    traceback. ``GROKSCOPE_TRACEBACK=1`` asks for it always.
    """
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(grokscope.__file__).parent
    ours = isinstance(error, ValueError) and here in Path(frames[-1].filename).parents
    if ours and not os.environ.get("GROKSCOPE_TRACEBACK"):
        return str(error)
    return "".join(traceback.format_exception(error))


def _latest(rows: list[Row]) -> dict[str, float]:
    return {f"{row.split}/{row.measure}": row.value for row in rows}


def find_device(name: str) -> torch.device:
    """The device of a name such as ``cpu`` or ``cuda:1``; ``auto`` is CUDA where there is any.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"--device {name} can't be used here ({why}); try cpu") from error
    return device


def environment(
    segment: Segment, started: str, seconds: float, device: torch.device
) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: versions, machine, seeds, duration."""
    return {
        "grokscope": grokscope.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "seeds": segment.run.seeds.model_dump(),
        "started": started,
        "seconds": round(seconds, 3),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _revision() -> str | None:
    """Git revision of this package's checkout, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
