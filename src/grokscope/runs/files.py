"""Files that are always whole: written under a temporary name, flushed, then renamed.

Whoever reads a damaged file is told which one it is and what to do.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# What readers of JSON, Parquet and safetensors raise; pyarrow's errors are of these types, too.
DAMAGE = (OSError, ValueError, KeyError, TypeError, NotImplementedError, SafetensorError)


@contextmanager
def replacing(target: Path, confirm: Callable[[], None]) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it has been written.

    Args:
        target: The folder.
        confirm: Called before the folder appears; raises if it must not.
    """
    temporary = _temporary(target)
    temporary.mkdir(parents=True)
    try:
        try:
            yield temporary
            for path in temporary.iterdir():
                _flush(path)
        finally:
            confirm()  # a successor sweeps what we were writing: then that is the cause
        # A target can be there only from a process that was killed after its rename and before it
        # could report so; what it holds is of the same step.
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, also while another process does the same."""
    temporary = _temporary(path)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def read_object(path: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: The file.
        names: What the object must have.

    Raises:
        ValueError: If the file is missing or holds something else; see `reading`.
    """
    with reading(path):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise TypeError(f"it holds {type(facts).__name__} where an object is expected")
        for name in names:
            if name not in facts:
                raise KeyError(f"it lacks {name}")
        return facts


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Turn what goes wrong while a file of a segment is read into its name and the cure.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        yield path
    except PermissionError:
        raise  # it names its file, and the file is not damaged
    except DAMAGE as error:
        reason = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
        wrong = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({reason})"
        raise ValueError(
            f"{path} {wrong}; delete the folder {path.parent} to run this segment again"
        ) from error


def _temporary(path: Path) -> Path:
    """A temporary name beside; process ids of two machines may be the same."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
