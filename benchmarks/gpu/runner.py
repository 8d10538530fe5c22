"""Stages as subprocesses: limits, a deadline for all, and what is left when one is cut."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.gpu.files import write_json

ROOT = Path(__file__).resolve().parents[2]  # where `benchmarks` is found
AGAIN = 75  # exit status of a stage that must go on in a fresh process (EX_TEMPFAIL)
ATTEMPTS = 12  # processes of one stage, at most
MARGIN = 2.0  # seconds before its limit at which a stage should have ended by itself
GRACE = 20.0  # seconds in which checkpoints are written after an interrupt
LEAST = 3.0  # seconds below which a stage is not begun

Status = Literal["passed", "failed", "cut", "not begun"]


@dataclass(frozen=True)
class Stage:
    """One subprocess.

    Attributes:
        name: What it is called in the output and in ``stages.json``.
        limit: Seconds that it may take; more, if earlier stages left some.
        command: Its command line, to which ``--until TIME`` is added, in seconds since 1970.
    """

    name: str
    limit: float
    command: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a stage ended."""

    name: str
    status: Status
    seconds: float
    limit: float
    reason: str = ""


def run_stages(
    stages: Sequence[Stage],
    seconds: float,
    folder: Path,
    *,
    after: Callable[[], object] = lambda: None,
    reserve: float = 0.0,
) -> list[Ended]:
    """Run stages one after the other; a stage that fails or is cut does not stop the others.

    Args:
        stages: What to run.
        seconds: Until the deadline for all of them.
        folder: Where ``stages.json`` is rewritten after each stage.
        after: Called after each stage.
        reserve: Seconds before the deadline that no stage may use.
    """
    deadline = time.monotonic() + seconds
    limits = [stage.limit for stage in stages]
    limits[-1] += max(0.0, seconds - reserve - sum(limits))  # the last one can use it best
    ended: list[Ended] = []
    for place, stage in enumerate(stages):
        left = deadline - reserve - time.monotonic()
        limit = round(share(left, limits[place:]), 1)
        if limit < LEAST:
            ended.append(Ended(stage.name, "not begun", 0.0, limit, "the time was up"))
            say(f"{stage.name}: not begun, the time is up")
        else:
            say(f"{stage.name}: begins, with {limit:.0f} s ({left:.0f} s are left for all)")
            ended.append(run_stage(stage, limit))
            last = ended[-1]
            reason = f" ({last.reason})" if last.reason else ""
            say(f"{stage.name}: {last.status} after {last.seconds:.0f} s{reason}")
        write_json(folder / "stages.json", {"stages": [asdict(one) for one in ended]})
        after()
    return ended


def share(left: float, limits: Sequence[float]) -> float:
    """Seconds for the first of the stages that are left, by their limits.

    What earlier stages did not use comes on top of its limit; where too little is left for all,
    every one gets less.
    """
    spare = left - sum(limits)
    return limits[0] + spare if spare >= 0 else left * limits[0] / sum(limits)


def run_stage(stage: Stage, limit: float) -> Ended:
    """Run one stage, in further processes while it asks for them; kill it at its limit."""
    begin = time.monotonic()
    code: int | None = AGAIN
    attempts = 0
    while code is not None and (code == AGAIN or code < 0) and attempts < ATTEMPTS:
        left = limit - (time.monotonic() - begin)
        if attempts and left < LEAST:
            break
        attempts += 1
        code = _run(stage, left)
    seconds = round(time.monotonic() - begin, 1)
    if code is None:
        return Ended(stage.name, "cut", seconds, limit, f"it took more than {limit:.0f} s")
    reason = "" if code in (0, 1) else f"exit status {code}"
    return Ended(stage.name, "failed" if code else "passed", seconds, limit, reason)


def _run(stage: Stage, limit: float) -> int | None:
    """Exit status of one process; None if it was killed at the limit."""
    until = time.time() + max(limit - MARGIN, limit / 2)
    command = [*stage.command, "--until", f"{until:.1f}"]
    # A group, not a session: it ends with whatever ended us.
    process = subprocess.Popen(command, process_group=0, cwd=ROOT)
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:  # the group does not hear Ctrl-C; let it leave checkpoints
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
        raise
    finally:  # also what it started and left behind
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def say(text: str) -> None:
    """One line, at once: only the end of the output may be seen."""
    print(f"[gpu] {text}", flush=True)
