"""The base of everything that is data: frozen, closed to unknown fields, free of NaN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Validated settings; equal settings have equal dumps."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
