"""Run the stages, pack what came of them, and say what failed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu.files import Items, read_json
from benchmarks.gpu.pack import pack
from benchmarks.gpu.runner import ROOT, Ended, Stage, run_stages, say

PACKING = 15.0  # seconds kept for it
FULL, CHECKS, FLATNESS, TINY = 580.0, 120.0, 580.0, 290.0  # seconds for all, by what is asked for
# Of each stage, in seconds; ``streams`` is what `--flatness-only` needs of the timings.
LIMITS = {"env": 20, "checks": 80, "timings": 80, "streams": 30, "grokking": 120, "flatness": 255}
TINY_LIMITS = LIMITS | {"checks": 115, "timings": 45, "streams": 20, "grokking": 45, "flatness": 45}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, pack, say."""
    begin = time.monotonic()
    options = parser().parse_args(arguments)
    out, target = folders(options.out, options.pack_into)
    if not options.tiny and not options.checks_only:
        require_gpu()
    for name in ("env", "checks", "timings", "runs", "stages"):
        (out / f"{name}.json").unlink(missing_ok=True)  # of an earlier session
    if options.revision:
        os.environ["GROKSCOPE_REVISION"] = options.revision
    packed = partial(pack_safely, out, target)
    ended = run_stages(
        stages(options, out),
        (options.seconds or seconds(options)) - (time.monotonic() - begin),
        out,
        after=packed,
        reserve=PACKING,
    )
    wrong = [*summary(ended, out), *packed()]
    say(f"results are in {out}; what is to travel is in {target}")
    say("to read the runs: tar xzf NAME.tar.gz -C results, then grokscope report results/FOLDER")
    for line in wrong:
        say(f"FAILED {line}")
    if not wrong:
        say("all stages did what they should")
    return 1 if wrong else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Prove the GPU path, measure it, and use the rest of ten minutes for runs.",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of the results"
    )
    parser.add_argument(
        "--pack-into",
        type=Path,
        help="folder of the few files that are to travel; default: $OUT, else packed/ in --out",
    )
    parser.add_argument("--seconds", type=float, help="until the deadline for all stages")
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto")
    parser.add_argument("--revision", help="of the sources, where git can't tell")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--checks-only", action="store_true", help="fits in two minutes")
    what.add_argument("--flatness-only", action="store_true", help="all for suppress-flatness")
    parser.add_argument("--tiny", action="store_true", help="a smoke test that a CPU can do")
    return parser


def folders(out: Path, target: Path | None) -> tuple[Path, Path]:
    """Where results go, and where what is to travel goes.

    Raises:
        SystemExit: If the results would go where only eight files are taken from.
    """
    back = os.environ.get("OUT")
    out = out.resolve()
    if back and out == Path(back).resolve():
        raise SystemExit(
            f"--out {out} is $OUT, from which at most eight files come back, and runs are many: "
            "leave --out away, and what is to travel is packed into $OUT"
        )
    out.mkdir(parents=True, exist_ok=True)
    return out, target or (Path(back) if back else out / "packed")


def require_gpu() -> None:
    """Check that there is something to measure.

    Raises:
        SystemExit: If there is no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --tiny and --checks-only also run on a CPU")


def seconds(options: argparse.Namespace) -> float:
    """Until the deadline, where the command line does not say."""
    if options.tiny:
        return TINY
    if options.checks_only:
        return CHECKS
    return FLATNESS if options.flatness_only else FULL


def stages(options: argparse.Namespace, out: Path) -> list[Stage]:
    """The stages of what is asked for; limits in seconds, as docs/gpu.md says."""
    common = ["--out", str(out), "--device", options.device]
    common += ["--tiny"] if options.tiny else []

    def stage(name: str, limit: float, module: str, *part: str) -> Stage:
        command = (sys.executable, "-m", f"benchmarks.gpu.{module}", *part, *common)
        return Stage(name, limit, command)

    limits = TINY_LIMITS if options.tiny else LIMITS
    found = [stage("env", limits["env"], "env")]
    if options.flatness_only:  # it only needs to know how many runs side by side are worth it
        found.append(stage("timings", limits["streams"], "timings", "streams"))
    else:
        found.append(stage("checks", limits["checks"], "checks"))
    if not (options.flatness_only or options.checks_only):
        found.append(stage("timings", limits["timings"], "timings"))
        found.append(stage("grokking", limits["grokking"], "experiments", "grokking"))
    if not options.checks_only:
        found.append(stage("flatness", limits["flatness"], "experiments", "flatness"))
    return found


def pack_safely(out: Path, target: Path) -> list[str]:
    """Pack; what goes wrong is said, and stops nothing."""
    try:
        return pack(out, target)
    except OSError as error:
        return [f"packing: {error}"]


def summary(ended: Sequence[Ended], out: Path) -> list[str]:
    """A line for each stage that did not do what it should, with the items that failed."""
    lines = []
    for stage in ended:
        if stage.status == "passed":
            continue
        lines.append(f"{stage.name}: {stage.status} {stage.reason}".rstrip())
        items = Items(out / f"{stage.name}.json")
        lines += [f"{stage.name}: {line}" for line in items.wrong]
        if run := read_json(out / "runs.json").get(stage.name):
            lines.append(f"{stage.name}: {run['summary']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
