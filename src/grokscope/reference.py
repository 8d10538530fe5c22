"""Objects of the user's own by reference: ``package.module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def is_reference(text: str) -> bool:
    """Whether a name has the form of a reference."""
    return ":" in text


def load(reference: str) -> Any:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` refers to.

    The current folder counts as a place to look for packages.

    Raises:
        ValueError: If the reference has another form, there is no such file, module or name, or
            it fails when imported; says which.
    """
    source, colon, name = reference.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{reference!r}: write package.module:name or path/to/file.py:name")
    module = _file(source) if source.endswith(".py") else _module(source)
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ValueError(f"{reference!r}: {source} has no {name!r}; it has {', '.join(public)}")
    return getattr(module, name)


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


def _file(source: str) -> ModuleType:
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    known = f"grokscope_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error
    return module
