"""What comes back from a device machine: a few small files, written anew after each stage.

Of the folder that comes back at most eight files of 16 MiB are taken, two folders deep. Runs are
many files, so each experiment is one archive: settings, metrics and environments, as `results/`
holds them. Model states (90 MB for a ResNet-18) stay behind, so what has not finished can be read
and reported, but not resumed, elsewhere.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import yaml

RUNS = ("grokking", "flatness")
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
KEPT = (".parquet", ".yaml", ".json")


def pack(out: Path, target: Path) -> list[str]:
    """Write archives and copies of the JSON files.

    Args:
        out: The folder of the results.
        target: Where to put them; files of these names are replaced, each in one step.

    Returns:
        A sentence for each file that is too large or one too many to come back.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(out.glob("*.json")):
        replace(target / path.name, path.read_bytes())
    for name in RUNS:
        if (out / name).is_dir():
            archive(out / name, target / f"{name}.tar.gz")
    files = sorted(path for path in target.iterdir() if path.is_file())
    wrong = [
        f"{path.name} has {path.stat().st_size / 2**20:.1f} MiB, more than the 16 that come back"
        for path in files
        if path.stat().st_size > MOST_BYTES
    ]
    if len(files) > MOST_FILES:
        wrong.append(f"{target} has {len(files)} files, more than the {MOST_FILES} that come back")
    return wrong


def archive(folder: Path, target: Path) -> None:
    """Write a folder of runs as one archive, without model states.

    The folder in it has a name by which it can lie beside other results.
    """
    name = name_in_results(folder)
    temporary = target.with_name(f".{target.name}.tmp")
    with tarfile.open(temporary, "w:gz") as file:
        for path in members(folder):
            file.add(path, arcname=f"{name}/{path.relative_to(folder)}")
    os.replace(temporary, target)


def name_in_results(folder: Path) -> str:
    """The experiment, its preset and ``gpu``: ``grokking-paper-gpu``."""
    path = folder / "experiment.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    parts = (settings.get("name", folder.name), settings.get("preset"), "gpu")
    return "-".join(part for part in parts if part)


def members(folder: Path) -> Iterator[Path]:
    """What a reader needs of a folder of runs; nothing that is half written."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix in KEPT and path.is_file() and not any(p.startswith(".") for p in parts):
            yield path


def replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, target)
