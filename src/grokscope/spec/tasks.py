"""What a task is, as data: which examples, and which model."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from grokscope.settings import Settings

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


class ModularArithmetic(Settings):
    """Equations ``a op b = c`` and a small decoder transformer that completes them."""

    kind: Literal["modular"] = "modular"
    operation: Operation = "addition"
    modulus: int = Field(97, ge=2, le=1_000, description="p; not used for S5 composition")
    train_fraction: float = Field(0.4, gt=0, lt=1, description="share of all equations")
    answers: Literal[1, 2] = Field(2, description="1: c alone; 2: c and <eos>, as in the paper")
    vocabulary: int | None = Field(
        None, description="padded up to this; None: only the tokens in use"
    )
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


class Images(Settings):
    """Labelled images and a ResNet-18."""

    kind: Literal["images"] = "images"
    # Which data, not where they are stored: results are found again on another machine.
    source: str = Field(
        "uoft-cs/cifar10", description="digits; owner/name, in $GROKSCOPE_DATA or the hub; a folder"
    )
    size: int | None = Field(None, ge=4, description="height and width; None: unchanged")
    train_examples: int | None = Field(None, ge=4, description="stratified; None: all of them")
    validation_examples: int | None = Field(None, ge=2, description="stratified; None: all of test")
    validation_from: Literal["test", "train"] = Field(
        "test",
        description="test: as in the paper; train: the test set is reported but decides nothing",
    )
    normalisation: Literal["half", "cifar10", "data"] = Field(
        "half", description="mean and std 0.5; the published ones; those of the training data"
    )
    crop_padding: int = Field(0, ge=0, description="random crops after this much padding; 0: none")
    flip: bool = Field(False, description="random horizontal flips")
    stem: Literal["imagenet", "cifar"] = Field("imagenet", description="7x7 and max-pool, or 3x3")
    initialisation: Literal["pytorch", "torchvision"] = "pytorch"
    width: int = Field(64, ge=1, description="channels of the first stage")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.validation_from == "train" and self.validation_examples is None:
            raise ValueError(
                "validation_from=train needs validation_examples, how many to hold out"
            )
        return self


Task = Annotated[ModularArithmetic | Images | CustomTask, Field(discriminator="kind")]
