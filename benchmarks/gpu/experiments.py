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
from dataclasses import asdict, dataclass
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
CHECKPOINTS = 100.0  # seconds between them (a gigabyte for 12 runs); an interrupt leaves the last
TAIL = 25  # lines of its output that are kept, and shown if it fails


@dataclass(frozen=True)
class CommandEnd:
    """How the command ended.

    Attributes:
        code: Its exit status.
        interrupted: Whether that was at our request.
        seconds: From its start.
    """

    code: int
    interrupted: bool
    seconds: float


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
    ended = run(command, session)
    facts = outcome(session.out / session.only, size, ended, expected)
    facts["command"] = shlex.join(["grokscope", *command])
    facts["end of the output"] = log_of(session).read_text(errors="replace").splitlines()[-TAIL:]
    path = session.out / "runs.json"
    write_json(path, read_json(path) | {session.only: facts})
    print(f"  {facts['summary']}", flush=True)
    if ended.code and not ended.interrupted:
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
        "--together", way,
        "--replicas", str(size.most_at_once if session.on_gpu else 1),
        "--checkpoint-seconds", f"{CHECKPOINTS:g}",
        "--out", str(session.out / session.only),
    ]  # fmt: skip


def run(arguments: Sequence[str], session: Session) -> CommandEnd:
    """Run a command until it ends, or until the deadline is near."""
    begin = time.monotonic()
    interrupted = False
    with log_of(session).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", GROKSCOPE, *arguments], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            process.wait(timeout=max(session.seconds_left - stopping(session), 0.1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            interrupted = True
        except KeyboardInterrupt:  # it has had one, too
            interrupted = True
        code = process.wait()  # the runner ends both if that takes too long
    return CommandEnd(code, interrupted, round(time.monotonic() - begin, 1))


def log_of(session: Session) -> Path:
    """Where the command's output goes."""
    return session.out / f"{session.only}.log"


def outcome(folder: Path, size: Size, ended: CommandEnd, expected: float | None) -> dict[str, Any]:
    """What has come of it.

    It went as planned if all that was planned for has finished, whether the command was
    interrupted after that or ended by itself.
    """
    facts = {"size": size.about, "expected seconds": expected, **asdict(ended)}
    if not (folder / "experiment.yaml").is_file():
        return facts | {
            "summary": f"nothing was run, exit status {ended.code}",
            "as planned": False,
        }
    store = Store(folder)
    plan = Plan(store.experiment(), store)
    planned = [
        entry
        for entry in plan.entries.values()
        if len(entry.segment.run.phases) <= size.levels or not ended.interrupted
    ]
    finished = [entry for entry in planned if not entry.is_missing]
    steps = sum(entry.step - entry.segment.start for entry in plan.entries.values())
    return facts | {
        "steps": steps,
        "segments": plan.summary(),
        "summary": f"{plan.summary()}; {len(finished)} of {len(planned)} that were planned for, "
        f"{steps:,} steps in all",
        "as planned": (ended.interrupted or ended.code == 0) and len(finished) == len(planned),
    }


if __name__ == "__main__":
    sys.exit(main())
