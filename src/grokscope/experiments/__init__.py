"""One file per question: arms, seeds, what would answer it, which figure it draws.

What a module here offers is found by itself, see `catalogue.offer`; nothing else has to know of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from grokscope.experiments.catalogue import CatalogueEntry, collect
from grokscope.reference import did_you_mean, is_reference, load
from grokscope.spec import Experiment, explain, read_experiment

__all__ = ["EXPERIMENTS", "find_experiment"]

EXPERIMENTS: Mapping[str, CatalogueEntry] = collect(__name__, __path__)
REFERENCES = "path/to/file.py:name or the name of a YAML file that 'grokscope show' wrote"


def find_experiment(name: str, preset: str = "default") -> Experiment:
    """The experiment of this name, or your own at ``path/to/file.py:name`` or in a YAML file.

    Args:
        name: A name of `EXPERIMENTS`, or a reference. In Python, what it refers to is an
            `Experiment`, or a function that returns one and may take a preset.
        preset: The variant; ``default`` is the first one.

    Raises:
        ValueError: If there is none, or it has no such preset; lists what there is.
    """
    if name.endswith((".yaml", ".yml")):
        return _only(read_experiment(Path(name)), name, preset)
    if is_reference(name):
        return _referenced(name, preset)
    if name not in EXPERIMENTS:
        raise ValueError(
            f"there is no experiment {name!r}. {did_you_mean(name, EXPERIMENTS)}There are: "
            f"{', '.join(EXPERIMENTS)}; to run your own, give {REFERENCES}"
        )
    return EXPERIMENTS[name](preset)


def _referenced(reference: str, preset: str) -> Experiment:
    takes_preset = False
    try:
        found = load(reference)
        if callable(found):
            takes_preset = bool(inspect.signature(found).parameters)
            found = found(preset) if takes_preset else found()
    except Exception as error:
        # Settings that are refused, at the top of the file or in the function.
        invalid = error if isinstance(error, ValidationError) else error.__cause__
        if isinstance(invalid, ValidationError):
            raise ValueError(f"{reference}: {explain(invalid)}") from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{reference} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, Experiment):
        raise ValueError(
            f"{reference} is of type {type(found).__name__}, not a grokscope Experiment"
        )
    return found if takes_preset else _only(found, reference, preset)


def _only(experiment: Experiment, source: str, preset: str) -> Experiment:
    """The one experiment of a source that has no presets."""
    if preset not in ("default", experiment.preset):
        raise ValueError(f"{source} is one experiment and has no preset {preset!r}")
    return experiment
