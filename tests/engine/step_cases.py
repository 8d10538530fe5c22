"""One table of small runs: every intervention, schedule and optimiser, for the laws of a step.

All have a last, shorter batch and end some epochs within 25 steps, which take a few ms each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from grokscope.interventions import (
    FrobeniusCap,
    LogitScaleCap,
    Penalty,
    SharpnessAware,
    SpectralCap,
)
from grokscope.interventions.settings import MEASURES
from grokscope.spec import CustomTask, Optimizer, Phase, Segment
from grokscope.tasks import Split, Task, build_task
from grokscope.tasks.images import CropAndFlip, Normalise
from grokscope.tasks.models.resnet import ResNet18
from small_runs import run

STEPS = 25
SGD = Optimizer(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01)
ADAMW = Optimizer(lr=0.01, weight_decay=0.1)
PUBLISHED = Penalty(
    measure="relative_flatness_bound", weight=-0.02, temperature=2.0, normalize_features=True
)
SAM = SharpnessAware(radius=0.05)
IMAGES = CustomTask(function="tests/engine/step_cases.py:tiny_images")
CLASSES = 4


def modular(segment: Segment) -> Task:
    """29 equations modulo 7, 4 batches an epoch, the last of 5; answers and ``<eos>``."""
    return build_task(segment.run.task, segment.run.seeds)


def images(segment: Segment) -> Task:
    """Noisy colours in four classes, 44 images, 6 batches an epoch, the last of 4; ResNet-18."""
    return tiny_images(segment.run.seeds.initialisation or 0)


def augmented(segment: Segment) -> Task:
    """The same images, cropped and flipped."""
    return replace(images(segment), augment=CropAndFlip(padding=1, flip=True))


def tiny_images(seed: int, examples: int = 44, size: int = 8) -> Task:
    """Images drawn in memory, and a network four channels wide."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(examples) % CLASSES
    colours = torch.randint(60, 196, (CLASSES, 3, 1, 1), generator=generator)

    def draw() -> Split:
        noise = torch.randint(-60, 60, (examples, 3, size, size), generator=generator)
        return Split((colours[labels] + noise).to(torch.uint8), labels)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet18(CLASSES, "cifar", width=4)
    return Task(nn.Sequential(Normalise((0.5,), (0.5,)), network), draw(), draw())


class Dropping(nn.Module):
    """A network that draws random numbers, from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def dropping(segment: Segment) -> Task:
    """Noise in four classes, 6 batches an epoch, the last of 4, and a network with dropout."""
    generator = torch.Generator().manual_seed(segment.run.seeds.split or 0)
    labels = torch.arange(44) % CLASSES
    splits = [Split(torch.randn(44, 5, generator=generator), labels) for _ in range(2)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(segment.run.seeds.initialisation or 0)
        return Task(Dropping(), *splits)


@dataclass(frozen=True)
class Case:
    """A run for a law.

    Attributes:
        make: Builds the task of the segment, the same each time.
        segment: One phase of `STEPS` steps.
    """

    make: Callable[[Segment], Task]
    segment: Segment

    def task(self) -> Task:
        """A task, equal to the last one and sharing nothing with it."""
        return self.make(self.segment)


def segment(make: Callable[[Segment], Task], *, seed: int = 1, **changes: object) -> Segment:
    """A phase with AdamW on equations and SGD on images, and changes to it."""
    on_equations = make is modular
    optimizer = ADAMW if on_equations else SGD
    phase = Phase(until=STEPS, **({"optimizer": optimizer} | changes))
    task = {} if on_equations else {"task": IMAGES}
    return run(STEPS, phases=(phase,), **task).segments(seed)[-1]


def case(make: Callable[[Segment], Task], **changes: object) -> Case:
    return Case(make, segment(make, **changes))


def changed(optimizer: Optimizer, **changes: object) -> Optimizer:
    return optimizer.model_copy(update=changes)


# Of small weight, or a few steps of maximising would end in infinity.
PENALTIES = {
    **{f"penalty: {name}": Penalty(measure=name, weight=0.01) for name in MEASURES},
    "penalty: nc1_quotient": Penalty(measure="nc1_quotient", weight=0.01),
    "penalty: the published one": PUBLISHED,
    "penalty: ncc with memory": Penalty(measure="ncc", weight=0.01, memory=0.9),
    "penalty: relative_flatness, maximised": Penalty(measure="relative_flatness", weight=-0.001),
}
# Low enough to bind.
CAPS = {
    "cap: frobenius": FrobeniusCap(cap=0.8),
    "cap: logit_scale": LogitScaleCap(cap=0.2),
    "cap: spectral": SpectralCap(cap=0.5),
}
CHANGES: dict[str, dict[str, object]] = {
    "plain": {},
    **{name: {"penalties": (penalty,)} for name, penalty in PENALTIES.items()},
    **{name: {"constraints": (cap,)} for name, cap in CAPS.items()},
    "two penalties": {"penalties": (Penalty(measure="gini", weight=0.1), PUBLISHED)},
    "a penalty and two caps": {
        "penalties": (PUBLISHED,),
        "constraints": (CAPS["cap: frobenius"], CAPS["cap: logit_scale"]),
    },
    # Windows that open and close within an epoch.
    "a penalty for some steps": {
        "penalties": (Penalty(measure="gini", weight=0.1, start=6, stop=15),)
    },
    "a memory for some steps": {
        "penalties": (Penalty(measure="ncc", weight=0.01, memory=0.9, start=6, stop=15),)
    },
    "a cap for some steps": {"constraints": (FrobeniusCap(cap=0.8, start=6, stop=15),)},
    "SAM": {"sharpness_aware": SAM},
    "SAM for some steps": {"sharpness_aware": SharpnessAware(radius=0.05, start=6, stop=15)},
    "SAM, a penalty and a cap": {
        "sharpness_aware": SAM,
        "penalties": (Penalty(measure="relative_flatness", weight=0.01),),
        "constraints": (CAPS["cap: frobenius"],),
    },
    "label smoothing": {"label_smoothing": 0.2},
    "temperature": {"temperature": 2.0},
    "bfloat16": {"precision": "bfloat16"},
}
CASES: dict[str, Case] = {
    **{f"equations, {name}": case(modular, **changes) for name, changes in CHANGES.items()},
    **{f"images, {name}": case(images, **changes) for name, changes in CHANGES.items()},
    "equations, cosine": case(modular, optimizer=changed(ADAMW, schedule="cosine")),
    "equations, warm-up": case(modular, optimizer=changed(ADAMW, warmup_steps=9)),
    "equations, SGD": case(modular, optimizer=SGD),
    "equations, SGD without momentum": case(modular, optimizer=changed(SGD, momentum=0.0)),
    "images, cosine": case(images, optimizer=changed(SGD, schedule="cosine", final_lr=1e-3)),
    "images, warm-up": case(images, optimizer=changed(SGD, warmup_steps=9)),
    "images, warm-up and cosine": case(
        images, optimizer=changed(SGD, warmup_steps=9, schedule="cosine")
    ),
    "images, AdamW": case(images, optimizer=ADAMW),
    "images, augmented": case(augmented),
    "images, augmented, SAM": case(augmented, sharpness_aware=SAM),
    "dropout": case(dropping),
    "dropout, SAM": case(dropping, sharpness_aware=SAM),
}
# What no graph can hold: such steps stay eager.
OBSTACLES = {
    "spectral": "a decomposition that waits for the device",
    "nc1_quotient": "shapes that depend on values",  # which classes a batch has
}
EAGER = {name: obstacle for name in CASES for word, obstacle in OBSTACLES.items() if word in name}

# Runs that are trained together.
REPLICAS: dict[str, list[Case]] = {
    "seeds": [case(modular, seed=seed) for seed in (1, 2, 3)],
    "seeds, on images": [case(images, seed=seed) for seed in (1, 2)],
    "augmented": [case(augmented, seed=seed) for seed in (1, 2)],
    "strengths of a penalty": [
        case(modular, penalties=(PUBLISHED.model_copy(update={"weight": weight}),))
        for weight in (-0.02, 0.0, 0.01)
    ],
    "ncc": [
        case(images, penalties=(Penalty(measure="ncc", weight=weight),)) for weight in (0.0, 0.01)
    ],
    "caps": [
        case(modular, constraints=caps)
        for caps in ((FrobeniusCap(cap=0.8),), (FrobeniusCap(cap=1.2), LogitScaleCap(cap=0.2)))
    ],
    "optimisers and schedules": [
        case(modular, optimizer=optimizer)
        for optimizer in (ADAMW, changed(ADAMW, schedule="cosine"), SGD, changed(SGD, lr=0.01))
    ],
}
