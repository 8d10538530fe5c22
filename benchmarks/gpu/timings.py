"""Stage: how long steps and looks take, and how many runs side by side are worth it.

An entry holds the seconds in which all of its runs make one step (of a look: one look). What later
stages decide by comes first, as a stage that is cut keeps what it has.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.gpu.clock import WINDOWS, elapsed, seconds_of
from benchmarks.gpu.engine import last_segment, task_of
from benchmarks.gpu.files import Items
from benchmarks.gpu.session import Session, parse
from benchmarks.gpu.work import Entry, run_items
from grokscope.engine.loop import STEPS_PER_TICK_ON_GPU, Training
from grokscope.engine.replicas import Replicas
from grokscope.engine.streams import Streams
from grokscope.experiments import find_experiment
from grokscope.spec import Run, Segment
from grokscope.tasks import Task

LIMIT = 40.0  # seconds of one timing
ENDLESS = 10**6  # steps of a phase that is never finished here
STREAMS = "streams"  # the part that `flatness` needs
Kind = Literal["grokking", "flatness"]
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Timing:
    """One entry of ``timings.json``.

    Attributes:
        kind: Whose runs: grokking at the paper's setting, or suppress-flatness, whose runs are
            the baseline and the penalty in turn.
        way: How they are trained; ``look`` for a look, ``SVD on ...`` for its dearest part.
        runs: How many.
        precision: Of the products of a step.
    """

    kind: Kind
    way: str
    runs: int = 1
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        precision = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.kind}, {self.way}, {self.runs}{precision}"


class Bench:
    """Makes what is timed.

    Args:
        session: The device, and whether sizes are tiny.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tasks: dict[Kind, Task] = {}  # made when first asked for; all runs share its data

    def runs_of(self, kind: Kind, precision: Precision = "float32") -> list[Run]:
        """The runs of a kind: their first phases, without an end."""
        preset = "tiny" if self.session.tiny else "paper"
        names = {"grokking": ("grokking",), "flatness": ("baseline", "kept")}[kind]
        arms = find_experiment({"flatness": "suppress-flatness"}.get(kind, kind), preset).arms
        return [self._endless(arms[name], precision) for name in names]

    def _endless(self, run: Run, precision: Precision) -> Run:
        phase = run.phases[0].model_copy(update={"until": ENDLESS, "precision": precision})
        # Points are a list: one at each of a million steps would be long.
        observation = run.observation.model_copy(update={"max_gap": ENDLESS})
        return run.model_copy(update={"phases": (phase,), "observation": observation})

    def task(self, kind: Kind) -> Task:
        """A task with a model of its own."""
        if kind not in self.tasks:
            segment = last_segment(self.runs_of(kind)[0])
            self.tasks[kind] = task_of(segment, self.session.device)
        shared = self.tasks[kind]
        return replace(shared, model=copy.deepcopy(shared.model))

    def segments(self, timing: Timing, *, alike: bool = False) -> list[Segment]:
        """The segments of a timing: all its kinds of runs in turn, or the first one alone."""
        runs = self.runs_of(timing.kind, timing.precision)
        chosen = islice(cycle(runs[:1] if alike else runs), timing.runs)
        return [last_segment(run, seed) for seed, run in enumerate(chosen)]

    def training(self, timing: Timing, *, graphs: bool = True) -> Training:
        """The first run of a timing."""
        task = self.task(timing.kind)
        if timing.way == "channels last":  # before the optimiser's buffers are made in its image
            task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Training(task, self.segments(timing)[0], graphs=graphs)

    def entry(self, timing: Timing) -> Entry:
        """Time one thing."""
        device = self.session.device
        facts: dict[str, Any] = {
            "kind": timing.kind,
            "way": timing.way,
            "runs": timing.runs,
            "precision": timing.precision,
        }
        if timing.way == "look":
            training = self.training(timing)
            training.advance(2)
            seconds = seconds_of(training.look, device, windows=3)
        elif timing.way in SVD:
            seconds = seconds_of(SVD[timing.way](timing, device), device, windows=3)
        else:
            advance, why_eager = self.advance(timing)
            seconds = seconds_of_step(advance, device, tiny=self.session.tiny)
            facts["eager"] = why_eager()  # known when steps have been made
            facts["steps a second, all runs"] = timing.runs / seconds
        return {"status": "passed", "seconds of a step": seconds, **facts}

    def advance(self, timing: Timing) -> tuple[Callable[[int], object], Callable[[], str]]:
        """What makes so many steps of all runs, and what then says why they were not captured."""
        if timing.way == "plain loop":
            loop = plain_loop(self.task(timing.kind), self.runs_of(timing.kind)[0])
            return loop, lambda: "a plain loop"
        if timing.way in ("streams", "vmap"):
            segments = self.segments(timing, alike=timing.way == "vmap")
            tasks = [self.task(timing.kind) for _ in segments]
            together = Streams if timing.way == "streams" else Replicas
            runs = together(tasks, segments, [None] * len(segments))
            return runs.advance, lambda: str(runs.facts(0).get("eager", ""))
        training = self.training(timing, graphs=timing.way != "eager")
        return training.advance, lambda: training.launcher.eager


def seconds_of_step(advance: Callable[[int], object], device: torch.device, *, tiny: bool) -> float:
    """Seconds of a step: the median of windows of a sixth of a second.

    Steps are made as a run makes them, so many at a time: of runs side by side a long stretch of
    one would fill the queue of its stream, and the others would wait.
    """
    window, at_once = (0.02, 2) if tiny else (0.15, STEPS_PER_TICK_ON_GPU)

    def make(stretches: int) -> None:
        for _ in range(stretches):
            advance(at_once)

    make(1)  # captures
    stretches = max(1, round(window / elapsed(lambda: make(1), device)))
    times = [elapsed(lambda: make(stretches), device) for _ in range(WINDOWS)]
    return statistics.median(times) / stretches / at_once


def plain_loop(task: Task, run: Run) -> Callable[[int], object]:
    """What one writes without grokscope: data on the device, torch's optimiser, nothing else."""
    settings = run.phases[0].optimizer
    parameters = list(task.model.parameters())
    if settings.name == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=settings.lr)
    else:
        optimizer = torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum)
    inputs, labels = task.train.inputs, task.train.labels
    size, loss = min(run.batch_size, len(labels) // 2), nn.functional.cross_entropy

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield from torch.randperm(len(labels), device=labels.device).split(size)

    order = batches()
    task.model.train()

    def advance(steps: int) -> None:
        for batch in islice(order, steps):
            logits = task.model(inputs[batch])
            optimizer.zero_grad()
            loss(logits.flatten(0, -2), labels[batch].flatten()).backward()
            optimizer.step()

    return advance


def class_means(timing: Timing, device: torch.device) -> torch.Tensor:
    """What a look decomposes: class means, ``[runs, classes, width]``, float64."""
    classes, width = {"grokking": (97, 128), "flatness": (10, 512)}[timing.kind]
    return torch.randn(timing.runs, classes, width, dtype=torch.float64, device=device)


def on_device(timing: Timing, device: torch.device) -> Callable[[], object]:
    means = class_means(timing, device)
    return lambda: torch.linalg.svd(means, full_matrices=False)


def on_host(timing: Timing, device: torch.device) -> Callable[[], object]:
    means = class_means(timing, device)
    return lambda: [part.to(device) for part in torch.linalg.svd(means.cpu(), full_matrices=False)]


SVD = {"SVD on the device": on_device, "SVD on the host": on_host}


def timings(session: Session) -> list[Timing]:
    """What is timed, in this order."""
    few = (1, 2) if session.tiny else (1, 2, 4, 8, 16, 32)
    streams = [Timing("flatness", "streams", runs) for runs in few]
    if session.only == STREAMS:
        return [Timing("flatness", "look"), *(one for one in streams if one.runs in (1, 2, 4, 8))]
    seeds = (1, 2) if session.tiny else (3, 10, 1, 30)
    ways = ("streams", "vmap")
    one = ("plain loop", "eager", "captured")
    return [
        *(Timing("grokking", way, runs) for runs in seeds[:2] for way in ways),
        Timing("grokking", "look"),
        *streams,
        Timing("flatness", "look"),
        *(Timing("grokking", way) for way in one),
        *(Timing("flatness", way) for way in (*one, "channels last")),
        Timing("flatness", "captured", 1, "tf32"),
        Timing("flatness", "captured", 1, "bfloat16"),
        *(Timing("grokking", way, runs) for runs in seeds[2:] for way in ways),
        *(Timing("grokking", way, runs, "tf32") for runs in seeds[1::2] for way in ways),
        *(Timing("flatness", "vmap", runs) for runs in few[:5]),
        *(Timing(kind, way, runs) for kind in ("grokking", "flatness") for runs in (1, 30)
          for way in SVD),
    ]  # fmt: skip


def main() -> int:
    """Time what has not been timed."""
    session = parse("timings")
    items = Items(session.out / "timings.json", {"device": str(session.device)})
    bench = Bench(session)
    work = {timing.name: partial(bench.entry, timing) for timing in timings(session)}
    return run_items(session, items, work, limit=LIMIT, describe=describe)


def describe(entry: Entry) -> str:
    """Milliseconds, and the rate of all runs."""
    if "seconds of a step" not in entry:
        return f"({entry['reason']})"
    text = f"{1e3 * entry['seconds of a step']:.3g} ms"
    if rate := entry.get("steps a second, all runs"):
        text += f", {rate:,.0f} steps/s in all"
    return text


if __name__ == "__main__":
    sys.exit(main())
