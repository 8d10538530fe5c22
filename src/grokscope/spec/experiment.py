"""An experiment: a question, the arms that answer it, and what is drawn and claimed from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from grokscope.settings import Settings
from grokscope.spec.run import Run, Seed, Segment


class PaperValue(Settings):
    """A value that the paper reports, and where ours is found.

    ``ours`` is ``memorised``, ``generalised``, or ``first``, ``highest``, ``last`` or ``before``
    (at the end of the first phase) and a ``split/measure``, as in ``last train/ncc``, followed by
    ``of ARM`` where arms differ; empty where we have none.
    """

    what: str
    value: str
    ours: str = Field(
        "",
        pattern=r"^(|memorised|generalised|(first|highest|last|before) \w+/\w+( of .+)?)$",
    )


class Contrast(Settings):
    """Two arms that answer a claim, compared seed by seed at the end of a phase."""

    claim: str
    arm: str
    against: str = "baseline"
    phase: int = Field(-1, description="index of the arm's phase at whose end; -1: the last")
    label: str = Field("", description="what sets it apart from another of the same two arms")
    role: str = Field("", pattern=r"^[a-z ]*$", description="what the claim takes the arm for")


class Experiment(Settings):
    """A question, the arms that answer it, and what is drawn and claimed from them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    preset: str = "default"
    title: str
    question: str
    arms: dict[str, Run] = Field(min_length=1)
    seeds: tuple[Seed, ...] = (1, 42, 15213)
    claims: tuple[str, ...] = ()
    contrasts: tuple[Contrast, ...] = Field((), description="which arms answer a claim")
    figures: tuple[str, ...] = ()
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
        for each in self.contrasts:
            for name in (each.arm, each.against):
                if name not in self.arms:
                    known = ", ".join(self.arms)
                    raise ValueError(f"a contrast of {each.claim} names {name!r}; arms are {known}")
            phases = len(self.arms[each.arm].phases)
            if not -phases <= each.phase < phases:
                raise ValueError(
                    f"a contrast of {each.claim} is at phase {each.phase} of {each.arm!r}, which "
                    f"has {phases}"
                )
        return self

    def runs(self) -> Iterator[tuple[str, int, list[Segment]]]:
        """Every (arm, seed, chain of segments)."""
        for arm, run in self.arms.items():
            for seed in self.seeds:
                yield arm, seed, run.segments(seed)
