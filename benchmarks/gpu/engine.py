"""The engine as the stages use it: trainings of small and real runs, made and advanced."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import torch

from grokscope.engine.loop import Training
from grokscope.engine.replicas import Replicas
from grokscope.engine.state import MODEL, State
from grokscope.engine.streams import Streams
from grokscope.spec import Images, ModularArithmetic, Run, Seeds, Segment
from grokscope.tasks import Task, build_task


def last_segment(run: Run, seed: int = 1) -> Segment:
    """The last segment of a run."""
    return run.segments(seed)[-1]


def task_of(segment: Segment, device: torch.device, dtype: torch.dtype = torch.float32) -> Task:
    """The task of a segment, with a model of its own in a floating-point type."""
    task = _built(segment.run.task, segment.run.seeds)
    return replace(task, model=copy.deepcopy(task.model).to(dtype)).to(device)


@cache
def _built(task: ModularArithmetic | Images, seeds: Seeds) -> Task:
    """A task on the CPU: digits are read once, not for every one of a hundred runs."""
    return build_task(task, seeds)


def training_of(
    run: Run,
    device: torch.device,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    graphs: bool = True,
    state: State | None = None,
) -> Training:
    """The training of a run of one phase."""
    segment = last_segment(run, seed)
    return Training(task_of(segment, device, dtype), segment, state, graphs=graphs)


def replicas_of(
    run: Run,
    device: torch.device,
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
) -> Replicas:
    """A run with several seeds, in one forward and backward pass."""
    segments = [last_segment(run, seed) for seed in seeds]
    tasks = [task_of(segment, device, dtype) for segment in segments]
    return Replicas(tasks, segments, [None] * len(segments))


def streams_of(runs: Iterable[Run], device: torch.device) -> Streams:
    """Runs side by side."""
    segments = [last_segment(run) for run in runs]
    tasks = [task_of(segment, device) for segment in segments]
    return Streams(tasks, segments, [None] * len(segments))


def unequal(one: State, other: State) -> list[str]:
    """Names of tensors of two states that are not equal to the bit."""
    names = one.tensors.keys() | other.tensors.keys()
    return sorted(
        name
        for name in names
        if name not in one.tensors
        or name not in other.tensors
        or not torch.equal(one.tensors[name], other.tensors[name])
    )


def difference(one: State, other: State) -> float:
    """Norm of the difference of two models, as a share of the norm; infinite for NaN."""
    pairs = [
        (tensor.double(), other.tensors[name].double())
        for name, tensor in one.tensors.items()
        if name.startswith(MODEL)
    ]
    apart = sum(float((left - right).square().sum()) for left, right in pairs)
    whole = sum(float(right.square().sum()) for _, right in pairs)
    share = (apart / whole) ** 0.5
    return share if share == share else float("inf")
