"""When an intervention is on."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from grokscope.settings import Settings


class Scheduled(Settings):
    """On for the steps in (start, stop] of the run; within its phase in any case."""

    start: int = Field(0, ge=0, description="off up to this step")
    stop: int | None = Field(None, ge=1, description="off after this step; None: never")

    @model_validator(mode="after")
    def _starts_before_it_stops(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop={self.stop} must come after start={self.start}")
        return self

    def active(self, step: int) -> bool:
        """Whether it is on at the update that makes step ``step`` (from 1)."""
        return self.start < step and (self.stop is None or step <= self.stop)
