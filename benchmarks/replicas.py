"""Many runs at once: processes beside each other, and replicas in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import astuple
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.crew import Crew
from benchmarks.step import plain_loop
from benchmarks.timing import Table, Timed, race
from grokscope.engine.loop import Training
from grokscope.engine.replicas import Replicas
from grokscope.experiments import find_experiment
from grokscope.spec import Images, Optimizer, Phase, Run, override
from grokscope.tasks import build_task

CORES = 2
COUNTS = (1, 2, 4, 8)
MANY = 30  # replicas, as many as the paper's figure needs
TINY = ("task.answers=2", "task.modulus=23", "task.width=8", "task.heads=4", "batch_size=16")
Prepare = Callable[[], Callable[[], object]]


def tables() -> list[Table]:
    """Steps of the grokking task and of ResNet-18, by how many runs go on at once."""
    return [grokking_table(), images_table(), host_table()]


def grokking(precision: str = "float32") -> Run:
    """The default experiment with both answers."""
    changes = [
        "task.answers=2",
        f"phases.0.precision={precision}",
        "phases.0.until=100000",
    ]
    return override(find_experiment("grokking"), changes).arms["grokking"]


def images() -> Run:
    """A ResNet of the small experiments, on 32x32 pictures of digits."""
    task = Images(source="digits", size=32, width=16, train_examples=1000, validation_examples=100)
    phase = Phase(until=10**6, optimizer=Optimizer(name="sgd", lr=0.01))
    return Run(task=task, batch_size=64, phases=(phase,))


def together(run: Run, replicas: int, threads: int = 1) -> Callable[[], object]:
    """A step of so many runs in one process."""
    torch.set_num_threads(threads)
    segments = [run.segments(seed)[0] for seed in range(replicas)]
    tasks = [build_task(each.run.task, each.run.seeds) for each in segments]
    return Replicas(tasks, segments, [None] * replicas).advance


def solo(run: Run) -> Callable[[], object]:
    """A step of one run, as the engine makes it."""
    segment = run.segments(1)[0]
    training = Training(build_task(segment.run.task, segment.run.seeds), segment)
    return partial(training.advance, 1)


def measured(contenders: dict[str, tuple[Prepare, int, int]], rounds: int) -> dict[str, Timed]:
    """Seconds of one step of one run: contenders take turns, their processes wait meanwhile.

    Args:
        contenders: Name -> (what makes the step, processes, runs in each).
        rounds: Turns of each.
    """
    crews = {name: Crew(prepare, size) for name, (prepare, size, _) in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    steps = {name: max(2, round(1.5 / crew(2) * 2)) for name, crew in crews.items()}
    for _ in range(rounds):
        for name, crew in crews.items():
            _, size, runs = contenders[name]
            times[name].append(crew(steps[name]) / steps[name] / size / runs)
    for crew in crews.values():
        crew.close()
    return {name: Timed(statistics.median(own), min(own), max(own)) for name, own in times.items()}


def alone_and_together(run: Run) -> dict[str, tuple[Prepare, int, int]]:
    """A run by itself, in several processes, and in replicas in one."""
    return {
        "grokscope": (partial(solo, run), 1, 1),
        "grokscope, 2 processes": (partial(solo, run), CORES, 1),
    } | {
        f"grokscope, replicas in one process: {count}": (
            partial(together, run, count, threads=CORES), 1, count,
        )
        for count in COUNTS
    }  # fmt: skip


def grokking_table() -> Table:
    contenders = {
        "the paper's loop": (plain_loop, 1, 1),
        "the paper's loop, 2 processes": (plain_loop, CORES, 1),
        **alone_and_together(grokking()),
        "grokscope, 2 processes, bfloat16": (partial(solo, grokking("bfloat16")), CORES, 1),
        "grokscope, 2 processes of 4 replicas": (partial(together, grokking(), 4), CORES, 4),
    }
    about = "the grokking task (batch 512, both answers)"
    return replicas_table("grokking replicas", about, contenders)


def images_table() -> Table:
    about = "ResNet-18 of width 16 (7x7 stem) on 64 images of 32x32"
    return replicas_table("image replicas", about, alone_and_together(images()))


def host_table() -> Table:
    """What is left of a step where arithmetic costs nothing: a lower bound for any GPU."""
    torch.set_num_threads(1)
    changes = [*TINY, "phases.0.until=100000"]
    run = override(find_experiment("grokking"), changes).arms["grokking"]
    segments = [run.segments(seed)[0] for seed in range(MANY)]
    replicas = Replicas(
        [build_task(each.run.task, each.run.seeds) for each in segments], segments, [None] * MANY
    )
    assert not replicas.observer.alone, replicas.observer.alone
    step, training = solo(run), replicas.trainings[0]
    everyone = list(range(MANY))
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "step of a run alone": (step, 1),
        f"step of {MANY} replicas": (replicas.advance, MANY),
        "look at a run alone": (training.look, 1),
        f"look at {MANY} replicas": (lambda: replicas.observer.rows(0, 0.0, places=everyone), MANY),
    }
    table = Table(
        "host",
        f"steps and looks of the grokking task with tensors so small ({', '.join(TINY)}) that much "
        "of what is timed is the host's work; of one run (one thread)",
        "step of a run alone",
    )
    table.times = {
        name: Timed(*(each / contenders[name][1] for each in astuple(timed)))
        for name, timed in race({name: call for name, (call, _) in contenders.items()}).items()
    }
    sent = (f"{name} {kernels(call):,}" for name, (call, _) in contenders.items())
    table.notes.append(f"Operations that a GPU would be sent: {'; '.join(sent)}.")
    return table


class _Count(TorchDispatchMode):
    made = 0

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ) -> object:
        self.made += not func.is_view
        return func(*args, **(kwargs or {}))


def kernels(call: Callable[[], object]) -> int:
    """Operations that are no mere view."""
    with _Count() as count:
        call()
    return count.made


def replicas_table(name: str, about: str, contenders: dict[str, tuple[Prepare, int, int]]) -> Table:
    table = Table(
        name,
        f"one step of one run of {about}, when several go on at once on {CORES} threads",
        next(iter(contenders)),
    )
    table.times = measured(contenders, rounds=5)
    table.notes.append(rates(table, "Steps"))
    return table


def rates(table: Table, noun: str) -> str:
    """What is made in a second by all runs together."""
    each = (f"{name} {1 / timed.median:,.0f}" for name, timed in table.times.items())
    return f"{noun} a second, all runs together: {'; '.join(each)}."
