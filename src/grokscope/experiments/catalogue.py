"""What an experiment says about itself before it runs, and how the modules here are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from grokscope.reference import did_you_mean
from grokscope.spec import Experiment

Maker = Callable[[str], Experiment]


@dataclass(frozen=True)
class Preset:
    """A variant of an experiment.

    Attributes:
        about: What it is for, in a phrase.
        duration: How long all its seeds take on two cores, roughly; measured, not guessed.
        smoke_test: Whether it only tests that everything works: its results mean nothing.
    """

    about: str
    duration: str
    smoke_test: bool = False


@dataclass(frozen=True)
class CatalogueEntry:
    """An experiment with its presets; the first preset is what ``default`` means.

    Attributes:
        make: Returns the experiment for the name of a preset.
        presets: Its variants by name.
    """

    make: Maker
    presets: Mapping[str, Preset]

    @property
    def name(self) -> str:
        """What a user types."""
        return self.make.__name__.replace("_", "-")

    def experiment(self, preset: str = "default") -> Experiment:
        """The experiment in one of its variants.

        Raises:
            ValueError: If it has no such preset; says which ones it has.
        """
        if preset == "default":
            preset = next(iter(self.presets))
        if preset not in self.presets:
            hint = did_you_mean(preset, self.presets)
            raise ValueError(
                f"{self.name} has no preset {preset!r}. {hint}It has: {', '.join(self.presets)}"
            )
        return self.make(preset)


def offer(presets: Mapping[str, Preset], makers: Iterable[Maker]) -> tuple[CatalogueEntry, ...]:
    """What a module declares as ``EXPERIMENTS``: functions that share their presets.

    Args:
        presets: Their variants; the first is the default.
        makers: Each returns an experiment for the name of a preset. A user types the name of the
            function, with hyphens.
    """
    return tuple(CatalogueEntry(make, presets) for make in makers)


def collect(package: str, path: list[str]) -> dict[str, CatalogueEntry]:
    """The ``EXPERIMENTS`` of every module in a package, by name."""
    found: dict[str, CatalogueEntry] = {}
    for module in pkgutil.iter_modules(path):
        offered = getattr(importlib.import_module(f"{package}.{module.name}"), "EXPERIMENTS", ())
        found |= {entry.name: entry for entry in offered}
    return found
