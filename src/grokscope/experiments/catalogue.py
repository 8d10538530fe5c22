"""What an experiment says of itself before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from grokscope.spec import Experiment, Run


@dataclass(frozen=True)
class Preset:
    """A variant of an experiment.

    Attributes:
        run: Makes its arm.
        about: What it is for, in a phrase.
        duration: Of all its seeds on two cores, roughly; measured, not guessed.
    """

    run: Callable[[], Run]
    about: str
    duration: str


@dataclass(frozen=True)
class Entry:
    """An experiment of ours with its presets; the one named ``default`` comes first."""

    make: Callable[[str], Experiment]
    presets: Mapping[str, Preset]
