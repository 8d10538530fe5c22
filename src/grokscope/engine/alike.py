"""Which runs can be trained together, decided before any work is done."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from grokscope.engine.state import State
from grokscope.probe.look import same_function
from grokscope.spec import Segment
from grokscope.tasks.task import Task

# What may differ between replicas of one phase, beside the seeds: it acts on each by itself.
MAY_DIFFER = {"optimizer", "constraints"}
# How far loss and gradients may be apart, in shares of their norm: GPUs round products to TF32.
TOLERANCE = {"cpu": 1e-3, "cuda": 0.1}


class UnlikeError(ValueError):
    """Runs that cannot be trained together; each can be trained alone."""


def shape_of(segment: Segment) -> str | None:
    """What segments have in common that can be trained together; None for one that cannot be.

    Alike are the task (its seeds aside), the batch size, when and what is measured, where the
    phase begins and ends, and its penalties but for their weights. Optimisers and caps may differ.
    Sharpness-aware steps and penalties that remember class means are not batched, nor is bfloat16:
    autocast treats batched operations differently.
    """
    run, phase = segment.run, segment.phase
    if phase.sharpness_aware is not None or any(penalty.memory for penalty in phase.penalties):
        return None
    if phase.precision == "bfloat16":
        return None
    settings = phase.model_dump(mode="json", exclude=MAY_DIFFER)
    for penalty in settings["penalties"]:
        del penalty["weight"]
    capped = bool(phase.constraints)  # they need the head's input
    parts = [run.task.kind, run.task.model_dump(mode="json"), run.batch_size, segment.start]
    watched = run.observation.model_dump(mode="json")
    return json.dumps([*parts, watched, settings, capped], sort_keys=True)


def check_equal(
    name: str, together: Sequence[Tensor | None], alone: Sequence[Tensor | None]
) -> None:
    """Check that loss and gradients of a replica are those of its run alone.

    Gradients are None for parameters that are not used; the name is the model's.

    Raises:
        UnlikeError: If they differ by more than rounding.
    """
    used = [tensor is not None for tensor in alone]
    if used != [tensor is not None for tensor in together]:
        raise UnlikeError(f"{name} can't be trained in replicas: other parameters are used alone")
    found, expected = (
        torch.cat([tensor.detach().double().flatten() for tensor in side if tensor is not None])
        for side in (together, alone)
    )
    if not bool(expected.isfinite().all()):
        return  # it has diverged, which its run reports
    apart = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    most = TOLERANCE["cuda" if together[0].is_cuda else "cpu"]  # type: ignore[union-attr]
    if not apart <= most:
        raise UnlikeError(
            f"{name} can't be trained in replicas: loss and gradients of all at once differ from "
            f"those of each alone by {apart:.2g} of their size"
        )


def check_alike(
    tasks: Sequence[Task], segments: Sequence[Segment], states: Sequence[State | None]
) -> None:
    """Check that runs can be trained together, before anything is built.

    Raises:
        UnlikeError: Saying in what they differ.
    """
    shapes = {shape_of(segment) for segment in segments}
    if None in shapes:
        raise UnlikeError(
            "sharpness-aware steps, penalties with a memory and bfloat16 are not batched; train "
            "each alone"
        )
    if len(shapes) > 1:
        raise UnlikeError(
            "replicas may differ only in seeds, optimiser, caps and the weights of penalties, but "
            f"segments {', '.join(segment.id for segment in segments)} differ in more"
        )
    steps = {
        segment.start if state is None else state.step
        for segment, state in zip(segments, states, strict=True)
    }
    if len(steps) > 1:
        raise UnlikeError(f"replicas must be at one step, but are at {sorted(steps)}")
    sizes = {len(task.train) for task in tasks}
    if len(sizes) > 1:
        raise UnlikeError(f"replicas need equally many training examples, not {sorted(sizes)}")
    if not all(same_function(task.loss, tasks[0].loss) for task in tasks):
        raise UnlikeError("replicas need one loss, the same function; these tasks have their own")
    forms = {
        tuple(
            (name, tensor.shape, tensor.dtype, tensor.requires_grad)
            for name, tensor in [*task.model.named_parameters(), *task.model.named_buffers()]
        )
        for task in tasks
    }
    if len(forms) > 1:
        raise UnlikeError("replicas need models with the same parameters, of the same shapes")
