"""One file per question: arms, seeds, what would answer it, which figure it draws."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from grokscope.experiments import (
    grokking,
    grokking_penalties,
    suppress_collapse,
    suppress_flatness,
)
from grokscope.experiments.catalogue import Entry, Preset
from grokscope.reference import is_reference, load
from grokscope.spec import Experiment, explain, read_experiment


def _entries(
    presets: Mapping[str, Preset], *makers: Callable[[str], Experiment]
) -> dict[str, Entry]:
    """Functions that share their presets, by the names that a user types."""
    return {each.__name__.replace("_", "-"): Entry(each, presets) for each in makers}


EXPERIMENTS: Mapping[str, Entry] = {
    **_entries(grokking.PRESETS, grokking.grokking),
    **_entries(grokking_penalties.PRESETS, grokking_penalties.grokking_penalties),
    **_entries(
        suppress_collapse.PRESETS,
        suppress_collapse.suppress_collapse,
        suppress_collapse.suppress_collapse_strength,
        suppress_collapse.suppress_collapse_augmented,
        suppress_collapse.encourage_collapse,
    ),
    **_entries(
        suppress_flatness.PRESETS,
        suppress_flatness.suppress_flatness,
        suppress_flatness.suppress_flatness_early,
        suppress_flatness.suppress_flatness_strength,
        suppress_flatness.suppress_flatness_cap,
        suppress_flatness.suppress_flatness_controls,
        suppress_flatness.encourage_flatness,
    ),
}
YOUR_OWN = "path/to/file.py:name, or a YAML file that grokscope show wrote"


def find_experiment(name: str, preset: str = "default") -> Experiment:
    """The experiment of this name, or your own at ``path/to/file.py:name`` or in a YAML file.

    In Python it is an `Experiment`, or a function that returns one and may take a preset.

    Raises:
        ValueError: If there is none, or it has no such preset; says what there is.
    """
    if name.endswith((".yaml", ".yml")):
        return _only(read_experiment(Path(name)), name, preset)
    if is_reference(name):
        return _own(name, preset)
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"there is no experiment {name!r}. {hint}There are: {', '.join(EXPERIMENTS)}; "
            f"your own is {YOUR_OWN}"
        )
    entry = EXPERIMENTS[name]
    first = next(iter(entry.presets))
    return entry.make(first if preset == "default" else preset)


def _own(reference: str, preset: str) -> Experiment:
    presets = False
    try:
        found = load(reference)
        if callable(found):
            presets = bool(inspect.signature(found).parameters)
            found = found(preset) if presets else found()
    except Exception as error:
        # Settings that are refused, at the top of the file or in the function.
        invalid = error if isinstance(error, ValidationError) else error.__cause__
        if isinstance(invalid, ValidationError):
            raise ValueError(f"{reference}: {explain(invalid)}") from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{reference} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, Experiment):
        raise ValueError(f"{reference} is {type(found).__name__}, not a grokscope Experiment")
    return found if presets else _only(found, reference, preset)


def _only(experiment: Experiment, source: str, preset: str) -> Experiment:
    """The one experiment of a source that has no presets."""
    if preset not in ("default", experiment.preset):
        raise ValueError(f"{source} is one experiment and has no preset {preset!r}")
    return experiment
