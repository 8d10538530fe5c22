"""Interventions as data, without torch; what they do is in the other modules of this room."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from grokscope.reference import is_reference
from grokscope.settings import Settings

PenaltyMeasure = Literal[
    "relative_flatness", "relative_flatness_bound", "ncc", "gini", "entropy", "logit_scale"
]
MEASURES: tuple[str, ...] = PenaltyMeasure.__args__  # type: ignore[attr-defined]


class Scheduled(Settings):
    """Active for the steps in (start, stop] of the run, within its phase."""

    start: int = Field(0, ge=0, description="inactive up to this step")
    stop: int | None = Field(None, ge=1, description="inactive after this step; None: stays active")

    @model_validator(mode="after")
    def _starts_before_it_stops(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop={self.stop} must come after start={self.start}")
        return self

    def active(self, step: int) -> bool:
        """Whether it is active at the update that makes step ``step`` (from 1)."""
        return self.start < step and (self.stop is None or step <= self.stop)


class Penalty(Scheduled):
    """``weight`` times a measure of the batch is added to the loss.

    The published penalty of flatness is ``relative_flatness_bound`` with a negative weight,
    ``temperature=2`` and ``normalize_features=True``; FAM is ``relative_flatness`` with a
    positive one.
    """

    measure: str = Field(
        description=f"{', '.join(MEASURES)}, another differentiable measure, or file.py:function"
    )
    weight: float = Field(description="factor of the measure in the loss; negative to maximise it")
    temperature: float = Field(
        1.0, gt=0, description="divides the logits; only for relative_flatness_bound"
    )
    normalize_features: bool = Field(
        False, description="scale features to length 1; only for relative_flatness_bound"
    )
    memory: float = Field(
        0.0, ge=0, lt=1, description="share of old class means kept at each step; only for ncc"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.measure not in MEASURES and not is_reference(self.measure):
            _check_record(self.measure)
        bound = self.measure == "relative_flatness_bound"
        if not bound and (self.temperature != 1.0 or self.normalize_features):
            raise ValueError(
                f"temperature and normalize_features belong to relative_flatness_bound, not to "
                f"{self.measure}"
            )
        if self.memory and self.measure != "ncc":
            raise ValueError(f"memory belongs to ncc, not to {self.measure}")
        return self

    @property
    def name(self) -> str:
        """The name of its value in the log; never that of a measure of the probe."""
        return f"penalty_{self.measure.rpartition(':')[2]}"


def _check_record(name: str) -> None:
    """Check that there is such a measure, and that a batch gives it and its gradient."""
    from grokscope.measures.record import records  # torch: only for names that are not usual

    possible = [known for known, record in records().items() if record.is_penalty]
    if name not in possible:
        kind = "can't be a penalty" if name in records() else "is not a measure"
        raise ValueError(
            f"{name!r} {kind}; choose one of {', '.join(possible)}, or a function of your own as "
            "package.module:function or path/to/file.py:function"
        )


class _Cap(Scheduled):
    """Base of the caps; the kind is always serialised, as caps differ in nothing else."""

    kind: str
    cap: float = Field(gt=0)

    @model_serializer(mode="wrap")
    def _with_kind(self, rest: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.kind, **rest(self)}


class FrobeniusCap(_Cap):
    """The Frobenius norm of the head's weight stays at most ``cap``, as in the paper."""

    kind: Literal["frobenius"] = "frobenius"


class SpectralCap(_Cap):
    """The largest singular value of the head's weight stays at most ``cap``."""

    kind: Literal["spectral"] = "spectral"


class LogitScaleCap(_Cap):
    """The mean logit scale on the current training batch stays at most ``cap``, in nats."""

    kind: Literal["logit_scale"] = "logit_scale"


Constraint = Annotated[FrobeniusCap | SpectralCap | LogitScaleCap, Field(discriminator="kind")]


class SharpnessAware(Scheduled):
    """Two passes per step: up the gradient by ``radius``, then down by the gradient taken there."""

    radius: float = Field(0.05, gt=0, description="rho: Euclidean length of the step up")
