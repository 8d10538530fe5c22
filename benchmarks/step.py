"""One training step of the grokking task: the paper's loop, ours, and the floor."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.baselines import PlainDecoder, paper_step
from benchmarks.timing import Table, Timed, copy_bandwidth, peak_flops, race
from grokscope.engine.loop import Training
from grokscope.engine.memory import saved_bytes
from grokscope.engine.observe import Observer
from grokscope.experiments import find_experiment
from grokscope.tasks import build_task
from grokscope.tasks.models.equations import EquationTransformer

BATCH, OPERANDS, WIDTH = 512, 97, 128


def flops(answers: int) -> float:
    """FLOPs of the matrix products of one step of our form; backward is twice forward."""
    d, suffix, prefix = WIDTH, (answers + 1) * BATCH, 2 * OPERANDS
    distinct = 2 * OPERANDS + 2 + (OPERANDS if answers == 2 else 0)
    after = 2 * d * d + 16 * d * d  # mix, expand and contract, for one row
    first = distinct * 6 * d * d + (prefix + suffix) * after
    second = (prefix + suffix) * 6 * d * d + answers * BATCH * after
    head = answers * BATCH * 2 * d * (OPERANDS + 3)
    return 3.0 * (first + second + head)


def bytes_moved() -> float:
    """Bytes that a step of our form (answers=2) moves at least.

    What autograd saves is written and read once; parameters are read twice and written, gradients
    and both moments of AdamW written and read.
    """
    model = EquationTransformer(OPERANDS, 2, OPERANDS + 3)
    tokens = torch.randint(0, OPERANDS, (BATCH, 5))
    tokens[:, 1], tokens[:, 3] = OPERANDS, OPERANDS + 1
    saved = saved_bytes(lambda: model(tokens))
    parameters = sum(each.nbytes for each in model.parameters())
    return 2.0 * saved + 9.0 * parameters


def tables() -> list[Table]:
    """The step at batch 512 on one thread, and what measuring adds."""
    peak = peak_flops()
    torch.set_num_threads(1)
    return [step_table(peak), looks_table()]


def step_table(peak: float) -> Table:
    table = Table(
        "grokking step",
        "one step of the grokking task, batch 512, both answer tokens (one thread)",
        "the paper's loop",
    )
    floor, moved = flops(2) / peak, bytes_moved()
    contenders = {table.baseline: plain_loop()}
    contenders |= {f"grokscope, answers={n}": our_step(n) for n in (2, 1)}
    table.times = race(contenders, rounds=7, seconds=1.0)
    table.times["floor: FLOPs at peak"] = Timed(floor, floor, floor)
    ours = table.times["grokscope, answers=2"].median
    table.notes.append(
        f"{flops(2) / 1e9:.2f} GFLOP a step (answers=2) at the measured peak of "
        f"{peak / 1e9:.0f} GFLOP/s; ours runs at {100 * floor / ours:.0f} % of it. At "
        f"least {moved / 1e6:.0f} MB are moved: {moved / copy_bandwidth() * 1e3:.0f} ms at the "
        "speed of a copy, in caches less. The paper's "
        "loop computes all five positions and its metrics at every step; it has no look in "
        "evaluation mode."
    )
    return table


def plain_loop():
    model = PlainDecoder(OPERANDS + 142)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
    batch = torch.randint(0, OPERANDS, (BATCH, 6))
    return lambda: paper_step(model, optimizer, batch)


def our_step(answers: int):
    model = EquationTransformer(OPERANDS, answers, OPERANDS + 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, fused=True)
    tokens = torch.randint(0, OPERANDS, (BATCH, 3 + answers))
    tokens[:, 1], tokens[:, 3] = OPERANDS, OPERANDS + 1
    labels = torch.randint(0, OPERANDS, (BATCH * answers,))

    def step() -> None:
        logits = model(tokens).flatten(0, 1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def looks_table() -> Table:
    """A default run's measuring as a share of its training, on a network that has memorised."""
    run = find_experiment("grokking").arms["grokking"]
    segment = run.segments(1)[0]
    training = Training(build_task(run.task, segment.run.seeds), segment)
    training.advance(150)
    observer = Observer([training.task], run.observation)
    steps, looks = [], []
    for _ in range(15):
        start = time.perf_counter()
        training.advance(5)
        steps.append((time.perf_counter() - start) / 5)
        start = time.perf_counter()
        observer.rows(0, 0.0)
        looks.append(time.perf_counter() - start)
    points, until = len(run.observation.points(segment.phase.until)), segment.phase.until
    training_time = statistics.median(steps) * until
    measuring_time = statistics.median(looks) * points
    table = Table("measuring", f"a default run of {until:,} steps (one thread)", "training")
    table.times = {
        "training": Timed(training_time, min(steps) * until, max(steps) * until),
        "measuring": Timed(measuring_time, min(looks) * points, max(looks) * points),
    }
    table.notes.append(
        f"{points} looks of {statistics.median(looks) * 1e3:.0f} ms: "
        f"{100 * measuring_time / training_time:.1f} % of the training time. A look runs the model "
        f"on {run.observation.train_examples:,} training and "
        f"{run.observation.validation_examples:,} "
        "held-out examples and takes every measure on both."
    )
    return table
