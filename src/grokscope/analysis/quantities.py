"""What the analysis looks at: the measures of collapse, flatness and representativeness."""

from __future__ import annotations

from typing import Literal, NamedTuple

Scale = Literal["linear", "log"]


class Quantity(NamedTuple):
    """A measure on one of the splits of the data."""

    measure: str
    split: str = "train"

    @property
    def name(self) -> str:
        """As findings and tables call it."""
        return NAMES.get(self, self.measure)


VALIDATION_ACCURACY = Quantity("accuracy", "validation")
TRAINING_LOSS = Quantity("loss")
COLLAPSE = (Quantity("ncc"), Quantity("ncc", "validation"))
UNBIASED_COLLAPSE = (Quantity("ncc_unbiased"), Quantity("ncc_unbiased", "validation"))
FLATNESS = (
    Quantity("relative_flatness"),
    Quantity("relative_flatness_bound"),
    Quantity("published_flatness"),
    Quantity("relative_flatness_matched"),
)
REPRESENTATIVENESS = (
    Quantity("representativeness", "validation"),
    Quantity("representativeness_kde", "validation"),
)
NAMES = {
    VALIDATION_ACCURACY: "validation accuracy",
    TRAINING_LOSS: "training loss",
    COLLAPSE[1]: "ncc (held out)",
    UNBIASED_COLLAPSE[1]: "ncc_unbiased (held out)",
}


def scale_of(measure: str) -> Scale:
    """How the fall of a measure is judged: by ratios, but where it has a sign, by distance to 0."""
    signed = any(measure == quantity.measure for quantity in REPRESENTATIVENESS)
    return "linear" if signed else "log"
