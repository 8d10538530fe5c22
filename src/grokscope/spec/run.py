"""A run: a task, seeds and phases. With a seed it is a chain of segments, one for each phase."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from grokscope.interventions import Constraint, Penalty, SharpnessAware
from grokscope.settings import Settings
from grokscope.spec.tasks import ModularArithmetic, Task

FORMAT = 1  # in every segment id: raise it when settings or defaults change their meaning

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every generator takes


class Optimizer(Settings):
    """AdamW or SGD, with a linear warm-up and an optional cosine over the phase."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW only")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    warmup_steps: int = Field(0, ge=0, description="counted from the start of the run")
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: float = Field(0.0, ge=0, description="where the cosine ends")

    @model_validator(mode="after")
    def _betas_are_rates(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        return self

    def rate(self, step: int, start: int, until: int) -> float:
        """Learning rate of the update that makes step ``step`` (from 1) in (start, until]."""
        rate = self.lr
        if self.schedule == "cosine":
            progress = (step - 1 - start) / max(until - start, 1)
            rate = self.final_lr + (rate - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        return rate * min(1.0, step / self.warmup_steps) if self.warmup_steps else rate


class Phase(Settings):
    """A stretch of training under one set of conditions."""

    until: int = Field(ge=1, description="last optimiser step of the phase")
    optimizer: Optimizer = Optimizer()
    penalties: tuple[Penalty, ...] = ()
    constraints: tuple[Constraint, ...] = Field((), description="enforced after every step")
    sharpness_aware: SharpnessAware | None = Field(None, description="SAM")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    temperature: float = Field(1.0, gt=0, description="divides the logits in the training loss")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of training steps: tf32 rounds products on a GPU, bfloat16 is autocast; "
        "measuring is in float32",
    )


class Observation(Settings):
    """When, and on how many examples, the probe measures. Steps are log-spaced up to a gap."""

    per_decade: int = Field(10, ge=1, le=1_000, description="measuring points per decade")
    max_gap: int = Field(50, ge=1, description="steps between points, at most")
    train_examples: int = Field(1024, ge=2, description="frozen subset of the training data")
    validation_examples: int = Field(1024, ge=2, description="frozen subset of the held-out data")

    def points(self, until: int) -> list[int]:
        """Steps in [0, until] at which to measure, ascending; 0 and ``until`` are among them."""
        points = [0]
        while points[-1] < until:
            here = points[-1]
            spaced = round(here * 10 ** (1 / self.per_decade))
            if here >= self.max_gap:  # stay on multiples of the gap, comparable between runs
                spaced = min(spaced, here - here % self.max_gap + self.max_gap)
            points.append(min(max(spaced, here + 1), here + self.max_gap, until))
        return points


class Seeds(Settings):
    """A seed for each source of randomness; ``None`` stands for the seed of the run."""

    split: Seed | None = Field(None, description="which examples are held out")
    initialisation: Seed | None = None
    order: Seed | None = Field(None, description="order of the batches")

    def resolve(self, seed: int) -> Seeds:
        """These seeds, with ``seed`` wherever none is set."""
        return Seeds(**{name: seed if value is None else value for name, value in self})


class Run(Settings):
    """One arm of an experiment, for any seed."""

    task: Task = ModularArithmetic()
    batch_size: int = Field(512, ge=1, description="at most half of the training examples")
    phases: tuple[Phase, ...]
    observation: Observation = Observation()
    seeds: Seeds = Seeds()

    @model_validator(mode="after")
    def _phases_ascend(self) -> Self:
        ends = [phase.until for phase in self.phases]
        if not ends:
            raise ValueError("phases is empty; a run needs at least one phase")
        if sorted(set(ends)) != ends:
            raise ValueError(f"phases must end one after the other, but end at {ends}")
        return self

    def segments(self, seed: int) -> list[Segment]:
        """The chain of segments that this run consists of, in order."""
        resolved = self.model_copy(update={"seeds": self.seeds.resolve(seed)})
        ends = range(1, len(self.phases) + 1)
        return [
            Segment(run=resolved.model_copy(update={"phases": self.phases[:end]})) for end in ends
        ]


@dataclass(frozen=True)
class Segment:
    """The last phase of a run, together with all that leads to it.

    Attributes:
        run: The run up to the end of this phase, with its seeds resolved.
    """

    run: Run

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of the hash of everything that decides the outcome.

        Settings at their defaults don't enter it, so that a setting added later leaves the ids of
        earlier results as they are.
        """
        settings = self.run.model_dump(mode="json", exclude_defaults=True)
        content = json.dumps([FORMAT, self.run.task.kind, settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @cached_property
    def parent(self) -> Segment | None:
        """The segment from whose end this one starts; None for the first."""
        if len(self.run.phases) == 1:
            return None
        return Segment(run=self.run.model_copy(update={"phases": self.run.phases[:-1]}))

    @property
    def phase(self) -> Phase:
        return self.run.phases[-1]

    @property
    def start(self) -> int:
        """The step at which this segment begins."""
        return self.run.phases[-2].until if len(self.run.phases) > 1 else 0
