"""Stage: one experiment through the public command, as much of it as the measured rate allows.

At the deadline the command is interrupted as by Ctrl-C: it leaves checkpoints and metrics, and its
folder is an ordinary one.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.files import read_json, write_json
from benchmarks.gpu.rates import Rates, Size, choose, flatness_sizes, grokking_sizes
from benchmarks.gpu.session import Session, parse
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store

SIZES = {"grokking": grokking_sizes, "flatness": flatness_sizes}
# Who is started from a background shell inherits that interrupts are ignored; this one needs them.
GROKSCOPE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from grokscope.cli import main
main()
"""
STOPPING = 12.0  # seconds before the deadline at which the command is interrupted, at most
CHECKPOINTS = 60.0  # seconds between them: what is lost if even the interrupt fails
INTERRUPTED = 130  # exit status of the command after Ctrl-C
from grokscope.runs.options import RunOptions  # until merged

TOGETHER = hasattr(RunOptions(), "together")
TAIL = 25  # lines of its output that are kept, and shown if it fails


def main() -> int:
    """Run the experiment that the command line names."""
    session = parse("experiments")
    if session.only not in SIZES:
        raise SystemExit(f"{session.only!r} is not one of: {', '.join(SIZES)}")
    rates = Rates.read(session.out / "timings.json", session.only)
    sizes = SIZES[session.only](session.tiny)
    size, expected = choose(sizes, rates, session.seconds_left - stopping(session))
    way = rates.best(size.most_at_once)[0] if rates else "auto"
    command = command_of(size, session, way)
    print(f"  {size.about}: {shlex.join(['grokscope', *command])}", flush=True)
    code, seconds = run(command, session)
    facts = outcome(session.out / session.only, size, code, expected)
    facts |= {"command": shlex.join(["grokscope", *command]), "seconds": round(seconds, 1)}
    facts["end of the output"] = log_of(session).read_text(errors="replace").splitlines()[-TAIL:]
    path = session.out / "runs.json"
    write_json(path, read_json(path) | {session.only: facts})
    print(f"  {facts['summary']}", flush=True)
    if code not in (0, INTERRUPTED):
        print("\n".join(facts["end of the output"]), flush=True)
    return 0 if facts["as planned"] else 1


def stopping(session: Session) -> float:
    """Seconds that are kept for the checkpoints."""
    return min(STOPPING, session.seconds_left / 4)


def command_of(size: Size, session: Session, way: str) -> list[str]:
    """The arguments of ``grokscope``."""
    return [
        "run", size.experiment,
        "--preset", size.preset,
        "--seeds", ",".join(map(str, size.seeds)),
        "--device", session.device.type,
        *(["--together", way] if TOGETHER else []),
        "--replicas", str(size.most_at_once if session.on_gpu else 1),
        "--checkpoint-seconds", f"{CHECKPOINTS:g}",
        "--out", str(session.out / session.only),
    ]  # fmt: skip


def run(arguments: Sequence[str], session: Session) -> tuple[int, float]:
    """Run a command until it ends, or until the deadline is near; exit status and seconds."""
    begin = time.monotonic()
    with log_of(session).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", GROKSCOPE, *arguments], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            process.wait(timeout=max(session.seconds_left - stopping(session), 0.1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        except KeyboardInterrupt:  # it has had one, too
            pass
        code = process.wait()  # the runner ends both if that takes too long
    return code, time.monotonic() - begin


def log_of(session: Session) -> Path:
    """Where the command's output goes."""
    return session.out / f"{session.only}.log"


def outcome(folder: Path, size: Size, code: int, expected: float | None) -> dict[str, Any]:
    """What has come of it.

    It went as planned if the command ended well, or was interrupted after what was planned for
    had finished; or if nothing was known of the rate and there are at least checkpoints.
    """
    facts: dict[str, Any] = {
        "size": size.about,
        "expected seconds": expected,
        "exit status": code,
        "interrupted": code == INTERRUPTED,
    }
    if not (folder / "experiment.yaml").is_file():
        return facts | {"summary": f"nothing was run (exit status {code})", "as planned": False}
    store = Store(folder)
    plan = Plan(store.experiment(), store)
    planned = [
        entry
        for entry in plan.entries.values()
        if len(entry.segment.run.phases) <= size.levels or code == 0
    ]
    finished = [entry for entry in planned if not entry.is_missing]
    steps = sum(entry.step - entry.segment.start for entry in plan.entries.values())
    done = len(finished) == len(planned)
    return facts | {
        "steps": steps,
        "segments": plan.summary(),
        "summary": f"{plan.summary()}; {len(finished)} of {len(planned)} that were planned for, "
        f"{steps:,} steps in all",
        "as planned": code in (0, INTERRUPTED) and done,
    }


if __name__ == "__main__":
    sys.exit(main())
