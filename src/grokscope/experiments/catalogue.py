"""What an experiment says about itself before it runs, and how the modules here are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from grokscope.reference import did_you_mean
from grokscope.spec import Contrast, Experiment


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

    Called with the name of a preset, it returns the experiment in that variant.

    Attributes:
        make: Returns the experiment for the name of a preset.
        presets: Its variants by name.
    """

    make: Callable[[str], Experiment]
    presets: Mapping[str, Preset]

    @property
    def name(self) -> str:
        """What a user types."""
        return self.make.__name__.replace("_", "-")

    def __call__(self, preset: str = "default") -> Experiment:
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
        variant = {"preset": preset, "smoke_test": self.presets[preset].smoke_test}
        return self.make(preset).model_copy(update=variant)


def offer(presets: Mapping[str, Preset]) -> Callable[[Callable[[str], Experiment]], CatalogueEntry]:
    """Offer the experiment that a function returns for the name of a preset.

    A user types the name of the function, with hyphens.

    Args:
        presets: Its variants; the first is the default.
    """
    return lambda make: CatalogueEntry(make, presets)


def compare(claims: Iterable[str], arms: Iterable[str]) -> tuple[Contrast, ...]:
    """Every one of the arms against the baseline, for every one of the claims."""
    names = tuple(arms)
    return tuple(Contrast(claim=claim, arm=arm) for claim in claims for arm in names)


def compare_roles(claim: str, roles: Mapping[str, str]) -> tuple[Contrast, ...]:
    """Arms against the baseline, for a claim that says what is to be expected of each."""
    return tuple(Contrast(claim=claim, arm=arm, role=role) for arm, role in roles.items())


def collect(package: str, path: list[str]) -> dict[str, CatalogueEntry]:
    """What every module in a package offers, by name."""
    found: dict[str, CatalogueEntry] = {}
    for module in pkgutil.iter_modules(path):
        names = vars(importlib.import_module(f"{package}.{module.name}")).values()
        found |= {entry.name: entry for entry in names if isinstance(entry, CatalogueEntry)}
    return found
