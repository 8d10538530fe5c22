"""One file per question: arms, seeds, what would answer it, which figure it draws."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from grokscope.experiments.grokking import grokking
from grokscope.reference import is_reference, load
from grokscope.spec import Experiment

EXPERIMENTS: Mapping[str, Callable[[str], Experiment]] = {"grokking": grokking}


def find_experiment(name: str, preset: str = "default") -> Experiment:
    """The experiment of this name, or your own at ``path/to/file.py:name``.

    Your own is an `Experiment`, or a function that takes a preset and returns one.

    Raises:
        ValueError: If there is none, or it has no such preset; says what there is.
    """
    if is_reference(name):
        return _own(name, preset)
    if name not in EXPERIMENTS:
        close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"there is no experiment {name!r}. {hint}There are: {', '.join(EXPERIMENTS)}; "
            "your own is path/to/file.py:name"
        )
    return EXPERIMENTS[name](preset)


def _own(reference: str, preset: str) -> Experiment:
    found = load(reference)
    if callable(found):
        found = found(preset)
    elif preset != "default":
        raise ValueError(f"{reference} is one experiment and has no preset {preset!r}")
    if not isinstance(found, Experiment):
        raise ValueError(f"{reference} is {type(found).__name__}, not a grokscope Experiment")
    return found
