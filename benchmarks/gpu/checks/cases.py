"""The runs that checks are made on: both tasks, every penalty and cap, and what changes a step.

They are small, so that float64 on a CPU takes no time, and have what hinders a captured step: a
last batch that is shorter, a rate that changes, random crops, and the end of an epoch in between.
"""

from __future__ import annotations

from typing import get_args

from grokscope.interventions import (
    FrobeniusCap,
    LogitScaleCap,
    Penalty,
    PenaltyMeasure,
    SharpnessAware,
    SpectralCap,
)
from grokscope.spec import Images, ModularArithmetic, Observation, Optimizer, Phase, Run

MODULAR = ModularArithmetic(modulus=23, width=32, heads=4, train_fraction=0.6)
# Behind the 7x7 stem the last stage of a 32x32 image has one position, as in the paper.
DIGITS = Images(source="digits", size=32, train_examples=56, validation_examples=60, width=4)
AUGMENTED = DIGITS.model_copy(update={"crop_padding": 4, "flip": True})
# Rates that float32 holds exactly, as a GPU's optimisers take them; also while they warm up.
ADAMW = Optimizer(lr=2**-8, weight_decay=0.5, warmup_steps=4)
SGD = Optimizer(name="sgd", lr=2**-6, momentum=0.9)
COSINE = {"schedule": "cosine", "final_lr": 1e-4, "weight_decay": 2e-4}
OBSERVATION = Observation(per_decade=3, max_gap=30, train_examples=56, validation_examples=60)
PUBLISHED = Penalty(
    measure="relative_flatness_bound", weight=-0.01, temperature=2.0, normalize_features=True
)
REMEMBERING = Penalty(measure="ncc", weight=0.01, memory=0.9)
CAPS = (FrobeniusCap(cap=1.5), SpectralCap(cap=0.7), LogitScaleCap(cap=0.5))
STEPS = 20


def modular(until: int = STEPS, optimizer: Optimizer = ADAMW, **phase: object) -> Run:
    """Equations; 317 of them, so that every fifth batch has 61 instead of 64."""
    phases = (Phase(until=until, optimizer=optimizer, **phase),)
    return Run(task=MODULAR, batch_size=64, phases=phases, observation=OBSERVATION)


def images(
    until: int = STEPS, optimizer: Optimizer = SGD, task: Images = DIGITS, **phase: object
) -> Run:
    """Digits; 56 of them, so that every fourth batch has 8 instead of 16."""
    phases = (Phase(until=until, optimizer=optimizer, **phase),)
    return Run(task=task, batch_size=16, phases=phases, observation=OBSERVATION)


def with_(optimizer: Optimizer, **changes: object) -> Optimizer:
    """An optimiser with other settings."""
    return optimizer.model_copy(update=changes)


def every_intervention(until: int = STEPS) -> dict[str, Run]:
    """Both tasks, plain and with each penalty and cap."""
    interventions: dict[str, dict[str, object]] = {
        "plain": {},
        "published penalty": {"penalties": (PUBLISHED,)},
        "ncc that remembers": {"penalties": (REMEMBERING,)},
        **{
            f"penalty {measure}": {"penalties": (Penalty(measure=measure, weight=0.01),)}
            for measure in get_args(PenaltyMeasure)
        },
        **{f"cap {cap.kind}": {"constraints": (cap,)} for cap in CAPS},
    }
    return {
        f"{task.__name__}, {name}": task(until, **settings)
        for task in (modular, images)
        for name, settings in interventions.items()
    }


def what_hinders_capture(until: int) -> dict[str, Run]:
    """Steps that change from one to the next, or that are made of two."""
    capped = {"penalties": (PUBLISHED,), "constraints": (CAPS[0],)}
    return {
        "equations, short batch": modular(until),
        "equations, cosine": modular(until, with_(ADAMW, **COSINE)),
        "equations, ncc that remembers": modular(until, penalties=(REMEMBERING,)),
        "images, short batch, published penalty and cap": images(until, **capped),
        "images, cosine, crops and flips": images(until, with_(SGD, **COSINE), AUGMENTED),
        "images, SAM": images(until, sharpness_aware=SharpnessAware()),
        "images, penalty that begins and ends": images(
            until, penalties=(PUBLISHED.model_copy(update={"start": 7, "stop": 23}),)
        ),
    }


def four_unlike(until: int) -> dict[str, Run]:
    """Runs that no batched step could serve."""
    cases = what_hinders_capture(until)
    names = list(cases)
    return {name: cases[name] for name in (names[0], names[2], names[4], names[5])}
