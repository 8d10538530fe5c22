"""For the sending side: put together what must travel, and say the one line to run there.

``python -m benchmarks.gpu.send`` copies CIFAR-10 and the wheels of what a device machine lacks into
``.gpu/``, which git ignores, checks that the whole fits, and prints the call of the device tool.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.gpu.__main__ import FLATNESS, FULL
from benchmarks.gpu.runner import ROOT

CARRIED = ".gpu"
DATA, WHEELS = f"{CARRIED}/data/cifar10", f"{CARRIED}/wheels"
MOST_BYTES = 64 * 2**20  # tracked files and carried ones together
MOST_LETTERS = 2000  # of a command
MOST_SECONDS = 600  # of a command
# What the machine lacks, or has in a version that is too old; torch and all else is there.
MISSING = (
    "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions",
    "filelock",
)  # fmt: skip
PYTHON = "3.12"  # there
PLATFORMS = tuple(f"manylinux{version}_x86_64" for version in ("_2_28", "_2_17", "2014"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy, download, add up, say."""
    options = parser().parse_args(arguments)
    try:
        copy_data(options.data, ROOT / DATA)
        download(ROOT / WHEELS)
        sizes = travelling(ROOT)
        check_size(sizes)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(call(options, revision(ROOT), sizes))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.send",
        description="Put together what must travel to a device machine, and say what to run there.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "cifar10",
        help="folder with train.parquet and test.parquet",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--checks-only", action="store_true")
    what.add_argument("--flatness-only", action="store_true")
    return parser


def copy_data(source: Path, target: Path) -> None:
    """Copy the Parquet files of CIFAR-10.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise ValueError(
            f"{source} holds no Parquet files of CIFAR-10; name their folder by --data"
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, target / path.name)


def download(target: Path) -> None:
    """Download the wheels that are missing there, in the versions of ``constraints.txt``.

    Raises:
        ValueError: If pip cannot; with what it says.
    """
    shutil.rmtree(target, ignore_errors=True)  # two versions of one would stop the installation
    target.mkdir(parents=True)
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", PYTHON, *platforms,
        "--constraint", str(ROOT / "constraints.txt"), "--dest", str(target), *MISSING,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"pip could not download the wheels: {done.stderr.strip()}")


def travelling(root: Path) -> dict[str, int]:
    """Bytes of what travels: files that git tracks or does not ignore, and what is carried."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    done = subprocess.run(
        [*command, "--exclude-standard"], capture_output=True, text=True, check=True
    )
    names = [root / name for name in done.stdout.split("\0") if name]
    return {
        "the checkout": total(names),
        **{name: total((root / name).rglob("*")) for name in (DATA, WHEELS)},
    }


def total(paths: Iterable[Path]) -> int:
    """Bytes of files; those that are not there count nothing."""
    return sum(path.lstat().st_size for path in paths if path.is_file() or path.is_symlink())


def check_size(sizes: dict[str, int]) -> None:
    """Check that the whole may travel.

    Raises:
        ValueError: If it is too large; says what is how large.
    """
    if (whole := sum(sizes.values())) > MOST_BYTES:
        raise ValueError(
            f"{in_mib(whole)} would travel, and {in_mib(MOST_BYTES)} may: {listed(sizes)}. Move "
            "what is not needed out of the checkout, or let git ignore it"
        )


def line(options: argparse.Namespace, revision: str) -> str:
    """The command to run there, in the root of the copy."""
    what = "--checks-only " if options.checks_only else ""
    what = "--flatness-only " if options.flatness_only else what
    return (
        "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade "
        f"--target /tmp/site {WHEELS}/*.whl "
        "&& set -o pipefail && export PYTHONPATH=/tmp/site:$PWD/src PYTHONUNBUFFERED=1 "
        f"GROKSCOPE_DATA=$PWD/{CARRIED}/data "
        f"&& python3 -m benchmarks.gpu {what}--out /tmp/gpu --pack-into $OUT --revision {revision} "
        "2>&1 | tee $OUT/log.txt"
    )


def call(options: argparse.Namespace, revision: str, sizes: dict[str, int]) -> str:
    """What to give to the device tool, and what travels."""
    command = line(options, revision)
    assert len(command) <= MOST_LETTERS
    assert max(FULL, FLATNESS) < MOST_SECONDS
    return "\n".join(
        [
            f"{in_mib(sum(sizes.values()))} travel: {listed(sizes)}.",
            f"carry: [{CARRIED!r}]",
            f"timeout_s: {MOST_SECONDS}",
            "command:",
            command,
        ]
    )


def listed(sizes: dict[str, int]) -> str:
    """Names with sizes."""
    return ", ".join(f"{name} {in_mib(size)}" for name, size in sizes.items())


def in_mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def revision(root: Path) -> str:
    """The revision of a checkout, marked if files differ from it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
