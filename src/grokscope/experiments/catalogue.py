"""What an experiment says of itself before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from grokscope.spec import Experiment


@dataclass(frozen=True)
class Preset:
    """A variant of an experiment.

    Attributes:
        about: What it is for, in a phrase.
        duration: Of all its seeds on two cores, roughly; measured, not guessed.
    """

    about: str
    duration: str


@dataclass(frozen=True)
class Entry:
    """An experiment of ours with its presets; the first is what ``default`` means."""

    make: Callable[[str], Experiment]
    presets: Mapping[str, Preset]
