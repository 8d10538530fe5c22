"""An experiment: a question, the arms that answer it, and what is drawn and claimed from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from grokscope.reference import did_you_mean
from grokscope.settings import Settings
from grokscope.spec.run import Run, Seed, Segment


class PaperValue(Settings):
    """A value that the paper reports, and where to find the measured one.

    ``measured`` is ``memorised``, ``generalised``, or one of ``first``, ``highest``, ``last`` and
    ``before`` (at the end of the first phase) with a ``split/measure``, as in ``last train/ncc``,
    followed by ``of ARM`` where arms differ. It is empty where nothing comparable is measured.
    """

    what: str
    value: str
    measured: str = Field(
        "",
        pattern=r"^(|memorised|generalised|(first|highest|last|before) \w+/\w+( of .+)?)$",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_of_earlier_versions(cls, data: Any) -> Any:
        if isinstance(data, dict) and "ours" in data:  # until 0.1
            data = {"measured" if name == "ours" else name: data[name] for name in data}
        return data


class Contrast(Settings):
    """Two arms that answer a claim, compared seed by seed at the end of a phase."""

    claim: str = Field(description="C1 to C15, or file.py:name of your own")
    arm: str
    against: str = "baseline"
    phase: int = Field(-1, description="index of the arm's phase at whose end; -1: the last")
    label: str = Field("", description="distinguishes contrasts of the same two arms")
    role: str = Field("", pattern=r"^[a-z ]*$", description="how the claim uses the arm")


class Experiment(Settings):
    """A question, the arms that answer it, and what is drawn and claimed from them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    preset: str = "default"
    smoke_test: bool = Field(
        False, description="only tests that everything works: its results mean nothing"
    )
    title: str
    question: str
    arms: dict[str, Run] = Field(min_length=1)
    seeds: tuple[Seed, ...] = (1, 42, 15213)
    claims: tuple[str, ...] = Field((), description="C1 to C15, or file.py:name of your own")
    contrasts: tuple[Contrast, ...] = Field((), description="which arms answer a claim")
    figures: tuple[str, ...] = Field((), description="names, or file.py:name of your own")
    paper: tuple[PaperValue, ...] = Field((), description="what the paper reports")

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> Self:
        if not self.seeds:
            raise ValueError("seeds is empty; an experiment needs at least one seed")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct, but are {', '.join(map(str, self.seeds))}")
        return self

    @model_validator(mode="after")
    def _contrasts_name_arms(self) -> Self:
        for contrast in self.contrasts:
            for name in (contrast.arm, contrast.against):
                if name not in self.arms:
                    raise ValueError(
                        f"a contrast of {contrast.claim} names the arm {name!r}, which does not "
                        f"exist. {did_you_mean(name, self.arms)}Arms are: {', '.join(self.arms)}"
                    )
            phases = len(self.arms[contrast.arm].phases)
            if not -phases <= contrast.phase < phases:
                raise ValueError(
                    f"a contrast of {contrast.claim} is at phase {contrast.phase} of "
                    f"{contrast.arm!r}, which has {phases}"
                )
        return self

    def runs(self) -> Iterator[tuple[str, int, list[Segment]]]:
        """Every (arm, seed, chain of segments); the segments are the same objects each time."""
        yield from self._runs

    @cached_property
    def _runs(self) -> list[tuple[str, int, list[Segment]]]:
        return [
            (arm, seed, run.segments(seed)) for arm, run in self.arms.items() for seed in self.seeds
        ]
