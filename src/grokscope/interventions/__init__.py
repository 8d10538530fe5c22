"""What changes a training run on purpose: penalties, constraints, and flatness-seeking steps.

Each is a small validated spec and a pure function. What an intervention computes stays its own:
what is plotted always comes from the probe.
"""

from grokscope.interventions.settings import (
    Constraint,
    FrobeniusCap,
    LogitScaleCap,
    Penalty,
    PenaltyMeasure,
    SharpnessAware,
    SpectralCap,
)

__all__ = [
    "Constraint",
    "FrobeniusCap",
    "LogitScaleCap",
    "Penalty",
    "PenaltyMeasure",
    "SharpnessAware",
    "SpectralCap",
]


def __dir__() -> list[str]:
    return __all__
