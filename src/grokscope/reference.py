"""A user's objects by reference: ``package.module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


def is_reference(text: str) -> bool:
    """Whether a name has the form of a reference."""
    return ":" in text


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``Did you mean NAME? `` with the closest of the names; empty where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean {close[0]}? " if close else ""


def load(reference: str, *, outside: Path | None = None) -> Any:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` refers to.

    Packages are also looked for in the current folder, and what a file imports also next to it.

    Args:
        reference: A module or a file, a colon, and a name in it.
        outside: A folder of results, wherever they came from: no code that lies in it is run.

    Raises:
        ValueError: If the reference has another form, there is no such file, module or name, the
            code lies in that folder, or the import fails; the message says which.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{reference!r}: write package.module:name or path/to/file.py:name")
    if outside is not None and _lies_in(source, outside.resolve()):
        raise ValueError(f"{source} lies in the folder of results, from which no code is run")
    module = _file(source) if source.endswith(".py") else _module(source)
    if not hasattr(module, name):
        public = [attribute for attribute in vars(module) if not attribute.startswith("_")]
        hint = did_you_mean(name, public)
        raise ValueError(f"{source} has no {name!r}. {hint}It has: {', '.join(public)}")
    return getattr(module, name)


def _lies_in(source: str, folder: Path) -> bool:
    """Whether a file, or a module wherever it is looked for, would be found in a folder."""
    places = [Path(source)]
    if not source.endswith(".py"):
        folders: list[str] = [str(Path.cwd()), *sys.path]
        places = [Path(searched, *source.split(".")) for searched in folders]
    return any(place.resolve().is_relative_to(folder) for place in places)


def _module(name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"{name} cannot be imported: {_cause(error)}") from error


def _file(source: str) -> ModuleType:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    file, facts = path.resolve(), path.stat()
    _search(file.parent)
    try:
        module = _execute(file, facts.st_mtime_ns, facts.st_size)
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {_cause(error, str(file))}") from error
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up by name
    return module


@functools.cache  # a penalty is looked up at every step
def _execute(file: Path, changed: int, size: int) -> ModuleType:  # noqa: ARG001
    """The module of a file, which is executed again only when the file has changed."""
    spec = importlib.util.spec_from_file_location(f"grokscope_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _search(folder: Path) -> None:
    """Also look for packages there, after all other places."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _cause(error: Exception, file: str | None = None) -> str:
    """What went wrong, on one line, and at which line of the file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
