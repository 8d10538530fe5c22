"""Checks of several processes: a group of one, and two workers on one device."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu.checks import cases
from benchmarks.gpu.checks.check import Found, check, count
from benchmarks.gpu.engine import last_segment, task_of
from benchmarks.gpu.session import Session
from grokscope.probe import Measurement, Probe
from grokscope.runs.jobs import Progress
from grokscope.runs.launch import launch
from grokscope.runs.options import Place, RunOptions
from grokscope.runs.store import Store
from grokscope.runs.worker import run_job
from grokscope.spec import Experiment

SEEDS = (1, 2)


@check()
def a_process_group_of_one_measures_what_a_plain_probe_does(session: Session) -> Found:
    """Measuring under DistributedDataParallel goes wrong on this device (NCCL; gloo on a CPU)."""
    task = task_of(last_segment(cases.images()), session.device)
    batches = [(task.validation.inputs, task.validation.labels)]
    plain = Probe(task.model).measure(batches)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if session.on_gpu else "gloo",
            init_method=f"file://{folder}/group",
            rank=0,
            world_size=1,
        )
        try:
            grouped = Probe(task.model, group=dist.group.WORLD).measure(batches)
            if session.on_gpu:
                torch.cuda.synchronize()
        finally:
            dist.destroy_process_group()
    names = [name for name in plain if not same(plain, grouped, name)]
    return count({"measures": names}, "measures that differ")


def same(one: Measurement, other: Measurement, name: str) -> bool:
    """Whether a measure is equal, or undefined in both."""
    return one[name] == other[name] or (one[name] != one[name] and other[name] != other[name])


@check()
def two_spawned_workers_leave_what_one_process_leaves(session: Session) -> Found:
    """Processes on one device disturb each other, or a spawned one sets other flags."""
    experiment = Experiment(
        name="check",
        title="Two workers",
        question="Does it matter who runs it?",
        arms={"equations": cases.modular(cases.STEPS)},
        seeds=SEEDS,
    )
    device = "cuda:0" if session.on_gpu else "cpu"
    options = RunOptions(workers=len(SEEDS), device=device, replicas=1)
    with tempfile.TemporaryDirectory() as folder:
        spawned, here = (Store(Path(folder) / name) for name in ("spawned", "here"))
        launch(experiment, spawned, options, ignore)
        here.save_experiment(experiment)
        for seed in SEEDS:
            segment = last_segment(experiment.arms["equations"], seed)
            place = Place(device)
            run_job(here, [segment], ignore, lambda: False, options=options, place=place)
        left, expected = (store.metrics(experiment) for store in (spawned, here))
    columns = [name for name in expected if not left[name].equals(expected[name])]
    missing = [] if len(left) == len(expected) else [f"{len(left)} rows, not {len(expected)}"]
    return count({"columns": columns, "rows": missing}, "columns of the metrics that differ")


def ignore(_: Progress) -> None:
    """Progress, which nobody watches."""
