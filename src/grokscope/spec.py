"""What a run is, as data: frozen, validated, hashable, written as YAML.

An `Experiment` asks a question of several *arms*; an arm is a `Run`: a task, seeds and a list of
*phases*. A phase says until which step training goes on and with which optimiser. Run and seed
together make a chain of `Segment`, one for each phase; a segment's id is the hash of everything
that precedes it and of itself, so arms that begin alike share their first segments.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

FORMAT = 1  # in every segment id: raise it when the same settings, or a default, change meaning

Operation = Literal[
    "addition",
    "subtraction",
    "multiplication",
    "division",
    "sum_of_squares",
    "quadratic_form",
    "cubic",
    "s5_composition",
]


Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what every generator takes


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModularArithmetic(Settings):
    """Equations ``a op b = c`` and a small decoder transformer that completes them."""

    kind: Literal["modular"] = "modular"
    operation: Operation = "addition"
    modulus: int = Field(97, ge=2, le=1_000, description="p; without effect for S5 composition")
    train_fraction: float = Field(0.4, gt=0, lt=1, description="share of all equations")
    answers: Literal[1, 2] = Field(2, description="1: c alone; 2: c and <eos>, as in the paper")
    vocabulary: int | None = Field(None, description="padded up to this; None: only used tokens")
    width: int = Field(128, ge=2, multiple_of=2)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1, le=16)

    @property
    def operands(self) -> int:
        """Number of operand tokens."""
        return 120 if self.operation == "s5_composition" else self.modulus

    @property
    def equations(self) -> int:
        """Number of all equations."""
        divisors = self.operands - 1 if self.operation == "division" else self.operands
        return self.operands * divisors

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        p = self.modulus
        if self.operation == "division" and any(p % d == 0 for d in range(2, math.isqrt(p) + 1)):
            raise ValueError(f"division needs a prime modulus, but {p} is not prime")
        needed = self.operands + 3
        if self.vocabulary is not None and self.vocabulary < needed:
            raise ValueError(f"vocabulary={self.vocabulary} is too small: {needed} tokens are used")
        count = round(self.train_fraction * self.equations)
        if not 2 <= count <= self.equations - 2:
            raise ValueError(
                f"train_fraction={self.train_fraction} leaves {count} of {self.equations} "
                "equations for training; both splits need at least 2"
            )
        return self


class CustomTask(Settings):
    """A task of your own: a function that returns a `grokscope.tasks.Task`."""

    kind: Literal["custom"] = "custom"
    # Its code does not enter a segment's id: results outlive a change of a comment, and one that
    # matters needs another argument, such as version=2, or another folder.
    function: str = Field(description="package.module:function or path/to/file.py:function")
    arguments: dict[str, JsonValue] = Field(default_factory=dict, description="passed by keyword")


Task = Annotated[ModularArithmetic | CustomTask, Field(discriminator="kind")]


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


class Observation(Settings):
    """When and on how much the probe measures. Steps are log-spaced, then at most a gap apart."""

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
    """Where randomness enters, apart; ``None`` follows the run's seed."""

    split: Seed | None = Field(None, description="which examples are held out")
    initialisation: Seed | None = None
    order: Seed | None = Field(None, description="order of the batches")

    def resolve(self, seed: int) -> Seeds:
        """These seeds with ``seed`` wherever none is set."""
        return Seeds(**{name: seed if own is None else own for name, own in self})


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


class Segment(Settings):
    """The last phase of ``run``, together with all that leads to it."""

    run: Run

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the hash of everything that decides the outcome.

        Settings at their defaults don't enter it, so that a setting added later leaves the ids of
        earlier results as they are.
        """
        settings = self.run.model_dump(mode="json", exclude_defaults=True)
        content = json.dumps([FORMAT, self.run.task.kind, settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
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


class PaperValue(Settings):
    """A value that the paper reports, and where ours is found.

    ``ours`` is ``memorised``, ``generalised``, or ``first``, ``highest`` or ``last`` and a
    ``split/measure``, as in ``last train/ncc``; empty where we have none.
    """

    what: str
    value: str
    ours: str = Field("", pattern=r"^(|memorised|generalised|(first|highest|last) \w+/\w+)$")


class Experiment(Settings):
    """A question, the arms that answer it, and what is drawn and claimed from them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    preset: str = "default"
    title: str
    question: str
    arms: dict[str, Run] = Field(min_length=1)
    seeds: tuple[Seed, ...] = (1, 42, 15213)
    claims: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    paper: tuple[PaperValue, ...] = Field((), description="what the paper reports")

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> Self:
        if not self.seeds:
            raise ValueError("seeds is empty; an experiment needs at least one seed")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct, but are {', '.join(map(str, self.seeds))}")
        return self

    def runs(self) -> Iterator[tuple[str, int, list[Segment]]]:
        """Every (arm, seed, chain of segments)."""
        for arm, run in self.arms.items():
            for seed in self.seeds:
                yield arm, seed, run.segments(seed)


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number, as everywhere else."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text ``1e-3``, so that it is read as text again."""


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )


def to_yaml(settings: Settings) -> str:
    """Settings as YAML, in the order of their definition."""
    data = settings.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_experiment(path: Path) -> Experiment:
    """Read an experiment that `to_yaml` wrote.

    Raises:
        ValueError: If the file is not such an experiment; names the file and the fields.
    """
    try:
        return Experiment.model_validate(_parse(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a grokscope experiment: {explain(error)}") from error


def override(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """The experiment with ``path=value`` assignments applied, validated as a whole.

    A path is relative to every arm (``task.modulus``, ``phases.0.optimizer.lr``), or names one
    (``arms.NAME.task.modulus``). Values are YAML: ``3``, ``1e-3``, ``null``, ``[0.9, 0.98]``.

    Raises:
        ValueError: For a path that does not exist or a value that does not fit; says which
            assignment, and what would be possible.
    """
    data = experiment.model_dump(mode="json")
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"--set {assignment}: write it as path=value, e.g. task.modulus=53")
        keys = _keys(path.strip(), experiment.arms)
        starts = [[]] if keys[0] == "arms" else [["arms", arm] for arm in data["arms"]]
        try:
            for start in starts:
                _assign(data, start + keys, _parse(text))
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"--set {assignment}: {explain(error)}") from error
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        given = ", ".join(f"--set {assignment}" for assignment in assignments)
        raise ValueError(f"{given}: {explain(error)}") from error


def with_seeds(experiment: Experiment, text: str) -> Experiment:
    """The experiment with other seeds, given as ``1,42,15213``.

    Raises:
        ValueError: If the text is something else, or seeds are negative or repeated.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds {text}: write whole numbers, e.g. 1,42,15213") from error
    try:
        return Experiment.model_validate(experiment.model_dump() | {"seeds": seeds})
    except ValidationError as error:
        raise ValueError(f"--seeds {text}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What is wrong, on one line: one ``field: problem`` for each."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    problems: dict[str, None] = {}
    for item in error.errors():
        # A task's kind stands in the place of a name there, but is none.
        names = [
            str(part)
            for above, part in zip((None, *item["loc"]), item["loc"], strict=False)
            if not (above == "task" and part in ("modular", "custom"))
        ]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such setting"
        shown = f" (got {item['input']!r})" if isinstance(item["input"], str | int | float) else ""
        problems[f"{'.'.join(names) or 'settings'}: {message}{shown}"] = None
    return "; ".join(problems)


def _parse(text: str) -> Any:
    return _Loader(text).get_single_data()


def _keys(path: str, arms: Iterable[str]) -> list[str]:
    """The names of a path; that of an arm may itself hold dots, as in ``strength 0.1``."""
    for arm in sorted(arms, key=len, reverse=True):
        if f"{path}.".startswith(f"arms.{arm}."):
            return ["arms", arm, *path.split(".")[2 + arm.count(".") :]]
    return path.split(".")


def _assign(data: Any, keys: Sequence[str], value: Any) -> None:
    """Set one leaf of nested dicts and lists; complain about a key that is not there."""
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        free = last and keys[depth - 1] == "arguments"  # a custom task's own arguments
        index = isinstance(data, list) and re.fullmatch("-?[0-9]+", key)
        if index and -len(data) <= int(key) < len(data):
            place: Any = int(key)
        elif isinstance(data, dict) and (key in data or free):
            place = key
        else:
            names = list(data) if isinstance(data, dict) else []
            names = [str(i) for i in range(len(data))] if isinstance(data, list) else names
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            where = ".".join(keys[:depth]) or "the experiment"
            nothing = "It is empty" if isinstance(data, dict | list) else "It is a value"
            there = f"It has: {', '.join(names)}" if names else nothing
            raise ValueError(f"{where} has no {key!r}. {hint}{there}")
        if last:
            data[place] = value
        data = data[place]
