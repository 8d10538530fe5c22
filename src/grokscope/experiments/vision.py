"""What the CIFAR-10 experiments share: their scales, in epochs, and the paper's settings."""

from __future__ import annotations

from dataclasses import dataclass

from grokscope.experiments.catalogue import Preset
from grokscope.interventions import FrobeniusCap, Penalty
from grokscope.spec import Images, Observation, Optimizer, Phase, Run


@dataclass(frozen=True)
class Scale:
    """How much of an experiment is run.

    Attributes:
        task: Data and network.
        examples: Number of training examples.
        share: The share of the paper's epochs that is run.
        measured: How many examples of the training and of the validation data are measured.
        seeds: Seeds of the runs.
        batch: Examples in a step.
        gap: The most epochs between two looks.
    """

    task: Images
    examples: int
    share: float
    measured: tuple[int, int]
    seeds: tuple[int, ...] = (1, 42, 15213)
    batch: int = 64
    gap: int = 2

    def steps(self, epochs: float) -> int:
        """Optimiser steps that stand for so many epochs of the paper."""
        return max(2, round(epochs * self.share)) * self.epoch

    @property
    def few_seeds(self) -> tuple[int, ...]:
        """Seeds of sweeps; of the paper's size there is one, as in the paper."""
        return (42,) if self.share == 1 else self.seeds[:3]

    @property
    def epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return -(-self.examples // self.batch)

    def run(self, *phases: Phase, **task: object) -> Run:
        """An arm: phases of this scale, with changes to the task."""
        train, validation = self.measured
        return Run(
            task=Images.model_validate(self.task.model_dump() | task),
            batch_size=self.batch,
            phases=phases,
            observation=Observation(
                per_decade=4,
                max_gap=self.gap * self.epoch,
                train_examples=train,
                validation_examples=validation,
            ),
        )


# The small scale was chosen by training accuracy alone: a ResNet-18 of a quarter of the width fits
# 4,000 images within 40 epochs without the penalty and with it at caps of 10 and 20 (at 50 the
# penalty swamps the loss near epoch 30), at 1.7 seconds an epoch on one core.
SCALES = {
    "small": Scale(
        task=Images(train_examples=4_000, validation_examples=1_000, width=16),
        examples=4_000, share=0.2, measured=(500, 1_000), seeds=(1, 2, 3, 42, 15213),
    ),
    "paper": Scale(task=Images(), examples=50_000, share=1.0, measured=(2_000, 2_000)),
    "tiny": Scale(
        task=Images(source="digits", train_examples=256, validation_examples=128, stem="cifar",
                    width=4),
        examples=256, share=0.025, measured=(100, 100), seeds=(1,),
    ),
}  # fmt: skip
ABOUT = {
    "small": "a quarter of the width, 4,000 images, a fifth of the epochs",
    "paper": "the paper's size and epochs; needs a GPU",
    "tiny": "a few epochs on handwritten digits",
}

PLAIN = Optimizer(name="sgd", lr=0.01, momentum=0.9)
# The four changes of the published removal: rate times ten, cosine, floor, weight decay.
PUBLISHED_END = Optimizer(
    name="sgd", lr=0.1, momentum=0.9, schedule="cosine", final_lr=1e-4, weight_decay=2e-4
)


def published_penalty(weight: float = 0.01) -> Penalty:
    """The paper's flatness-suppressing penalty: it subtracts ``weight`` times the value."""
    return Penalty(
        measure="relative_flatness_bound", weight=-weight, temperature=2.0, normalize_features=True
    )


def cap(value: float) -> FrobeniusCap:
    """A cap on the head's Frobenius norm, after each step."""
    return FrobeniusCap(cap=value)


def presets(small: str, paper: str = "not measured") -> dict[str, Preset]:
    """The scales as presets, with the time that all seeds take."""
    durations = {"small": small, "paper": paper, "tiny": "a minute"}
    return {
        scale: Preset(about, durations[scale], smoke_test=scale == "tiny")
        for scale, about in ABOUT.items()
    }
