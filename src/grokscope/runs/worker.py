"""One segment, run to its end in this process: state in, checkpoints and result out."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import grokscope
from grokscope.engine.loop import Training
from grokscope.engine.observe import Row
from grokscope.engine.state import State
from grokscope.runs.store import Store
from grokscope.spec import Segment
from grokscope.tasks import build_task


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

    Goes on from its last checkpoint, else from the end of its parent, else from the start.

    Args:
        store: Where states and results live.
        segment: What to run; its parent must be finished.
        report: Called at every tick.
        stop: Asked at every tick; a true answer makes a checkpoint and returns.
        checkpoint_seconds: Work that a killed process loses, at most, in seconds (plus the time
            to the next tick).
        threads: CPU threads. A checkpoint's own number wins: sums depend on it in the last bit.
        device: As of `find_device`.

    Raises:
        ValueError: If the device isn't there, or a file to go on from is damaged.
        SegmentBusyError: If another process is running this segment, or has taken it over.
    """
    with store.lock(segment):
        place = find_device(device)
        return _run(store, segment, report, stop, checkpoint_seconds, threads, place)


def _run(
    store: Store,
    segment: Segment,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
    threads: int,
    device: torch.device,
) -> bool:
    outcome = store.outcome(segment)
    if outcome is not None:  # finished by another process in the meantime
        report(Progress(segment.id, outcome.step, finished=True, diverged=outcome.diverged))
        return True
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    store.sweep(segment)
    state: State | None = None
    rows: list[Row] = []
    seconds = 0.0
    checkpoint = store.last_checkpoint(segment)
    if checkpoint is not None:
        state, rows, seconds = checkpoint
        threads = checkpoint[0].threads
    elif segment.parent is not None:
        state = store.state(segment.parent)
    torch.set_num_threads(threads)
    task = build_task(segment.run.task, segment.run.seeds).to(device)
    training = Training(task, segment, state)
    begin = saved = time.monotonic()
    diverged = False
    for tick in training.run():
        store.confirm(segment)
        rows += tick.rows
        diverged = tick.diverged
        report(Progress(segment.id, tick.step, _latest(tick.rows), diverged=diverged))
        now = time.monotonic()
        stopping = stop()
        if stopping or now - saved >= checkpoint_seconds:
            store.checkpoint(segment, training.state(), rows, seconds + now - begin)
            saved = now
        if stopping:
            return False
    seconds += time.monotonic() - begin
    facts = environment(segment, started, seconds, device)
    store.finish(segment, training.state(), rows, seconds, facts, diverged)
    report(Progress(segment.id, training.step, finished=True, diverged=diverged))
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
