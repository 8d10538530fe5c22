"""Segments that one process trains together: the same store as if each had been run alone."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from grokscope.engine.loop import Training
from grokscope.engine.memory import bytes_of, free_bytes
from grokscope.interventions import SharpnessAware
from grokscope.runs.launch import RunOptions, launch
from grokscope.runs.options import Place
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.runs.worker import SharedData, run_job
from grokscope.spec import CustomTask, Images, Optimizer, Phase, Segment
from grokscope.tasks import build_task
from one_segment import run_segment
from small_runs import TASK, experiment, run, segment

MODELS = '''
import torch
from grokscope import Split, Task

def dropping(seed: int) -> Task:
    """Random numbers in the model: not to be batched."""
    data = Split(torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)),
                 torch.arange(40) % 4)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 4))
    return Task(model, data, data)

def own_look(model, split, reference):
    from grokscope.tasks import measure
    return measure(model, split, reference).including(examples_seen=float(len(split)))

def looked_at_otherwise(seed: int) -> Task:
    """Trained together, and measured one after the other."""
    task = dropping(seed)
    return Task(torch.nn.Sequential(task.model[0], task.model[2]), task.train, task.train,
                measure=own_look)
'''


def metrics(store: Store, of: Segment) -> pd.DataFrame:
    return pd.read_parquet(store.folder / "segments" / of.id / "metrics.parquet")


def weights(store: Store, of: Segment) -> dict[str, torch.Tensor]:
    return load_file(store.folder / "segments" / of.id / "state.safetensors")


def facts(store: Store, of: Segment) -> dict:
    return json.loads((store.folder / "segments" / of.id / "environment.json").read_text())


def alone(folder: Path, segments: list[Segment]) -> Store:
    store = Store(folder)
    for each in segments:
        run_segment(store, each, lambda _: None, lambda: False)
    return store


def never() -> bool:
    return False


def test_a_job_leaves_what_its_segments_leave_alone(tmp_path):
    segments = [segment(40, seed=1), segment(40, seed=2), segment(40, seed=2, lr=1e-3)]
    store, expected = Store(tmp_path / "job"), alone(tmp_path / "alone", segments)
    heard = []
    run_job(store, segments, heard.append, never)
    assert [each.segment for each in heard if each.finished] == [each.id for each in segments]
    for each in segments:
        ours, theirs = metrics(store, each), metrics(expected, each)
        keys = ["step", "epoch", "replica", "split", "measure"]
        pd.testing.assert_frame_equal(ours[keys], theirs[keys])
        early = ours["step"] <= 9  # later, rounding has grown
        close = torch.isclose(
            torch.tensor(ours["value"][early].to_numpy()),
            torch.tensor(theirs["value"][early].to_numpy()),
            rtol=1e-3,
            atol=1e-5,
        )
        assert close.all()
        assert facts(store, each)["replicas"] == 3
        assert facts(expected, each)["replicas"] == 1
    assert not list(tmp_path.rglob("*.lease*"))


def test_a_job_that_is_stopped_goes_on_bit_for_bit(tmp_path):
    segments = [segment(60, seed=seed) for seed in (1, 2)]
    whole = Store(tmp_path / "whole")
    run_job(whole, segments, lambda _: None, never)
    store, steps = Store(tmp_path / "parts"), []
    for until in (10, 30, 100):
        run_job(
            store,
            segments,
            lambda heard: steps.append(heard.step),
            lambda until=until: bool(steps) and steps[-1] >= until,
        )
    for each in segments:
        pd.testing.assert_frame_equal(metrics(store, each), metrics(whole, each))
        for name, tensor in weights(whole, each).items():
            assert torch.equal(weights(store, each)[name], tensor), name


def test_segments_at_different_steps_are_run_one_after_the_other(tmp_path):
    ahead, behind = segment(60, seed=1), segment(60, seed=2)
    store, steps = Store(tmp_path), []
    run_job(store, [ahead], lambda heard: steps.append(heard.step), lambda: len(steps) > 3)
    assert store.checkpoint_step(ahead)
    run_job(store, [ahead, behind], lambda _: None, never)
    expected = alone(tmp_path / "alone", [ahead, behind])
    for each in (ahead, behind):
        pd.testing.assert_frame_equal(metrics(store, each), metrics(expected, each))


@pytest.mark.parametrize("reason", ["a model", "steps"])
def test_what_cannot_be_batched_is_run_alone(tmp_path, reason):
    if reason == "a model":
        (tmp_path / "models.py").write_text(MODELS)
        changes = {"task": CustomTask(function=f"{tmp_path / 'models.py'}:dropping")}
    else:
        sam = Phase(until=20, sharpness_aware=SharpnessAware(), optimizer=Optimizer(lr=1e-3))
        changes = {"phases": (sam,)}
    segments = [segment(20, seed=seed, **changes) for seed in (1, 2)]
    store = Store(tmp_path / "job")
    run_job(store, segments, lambda _: None, never)
    expected = alone(tmp_path / "alone", segments)
    for each in segments:
        pd.testing.assert_frame_equal(metrics(store, each), metrics(expected, each))
        assert facts(store, each)["replicas"] == 1
        assert ("alone" in facts(store, each)) and facts(store, each)["alone"]


def test_what_is_measured_alone_says_why(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    task = CustomTask(function=f"{tmp_path / 'models.py'}:looked_at_otherwise")
    store, usual = Store(tmp_path / "job"), [segment(20, seed=seed) for seed in (1, 2)]
    own = [segment(20, seed=seed, task=task) for seed in (1, 2)]
    for segments in (own, usual):
        run_job(store, segments, lambda _: None, never)
    for each in own:
        assert facts(store, each)["replicas"] == 2
        assert "in its own way" in facts(store, each)["measured_alone"]
        assert (metrics(store, each)["measure"] == "examples_seen").any()
    assert all("measured_alone" not in facts(store, each) for each in usual)


def test_a_segment_of_another_process_is_left_out_of_a_job(tmp_path):
    mine, theirs = segment(20, seed=1), segment(20, seed=2)
    store, heard = Store(tmp_path), []
    with Store(tmp_path).lock(theirs):
        run_job(store, [mine, theirs], heard.append, never)
    assert [each.segment for each in heard if each.busy] == [theirs.id]
    assert [each.segment for each in heard if each.finished] == [mine.id]


def test_a_replica_that_diverges_is_stored_as_such_and_the_others_go_on(tmp_path):
    calm, hot = segment(40, seed=1), segment(40, seed=2, lr=1e30)
    store, heard = Store(tmp_path), []
    run_job(store, [calm, hot], heard.append, never)
    ended, done = store.outcome(hot), store.outcome(calm)
    assert ended is not None and ended.diverged and ended.step < 40
    assert done is not None and not done.diverged and done.step == 40
    assert metrics(store, hot)["measure"].iloc[-1] == "diverged"


def test_a_launch_groups_what_can_be_trained_together(tmp_path):
    study = experiment(seeds=(1, 2, 3), a=run(20, 30), b=run(20, 40))
    store = Store(tmp_path)
    assert launch(study, store, RunOptions(workers=1, replicas=2), lambda _: None)
    assert not Plan(study, store).missing()
    together = [facts(store, each)["replicas"] for _, _, chain in study.runs() for each in chain]
    assert max(together) == 2


def test_streams_run_unlike_segments_in_one_job_as_each_is_alone(tmp_path):
    """Arms of other shapes, SAM and other lengths, which are no replicas of each other."""
    sam = Phase(until=30, sharpness_aware=SharpnessAware(), optimizer=Optimizer(lr=1e-3))
    study = experiment(
        seeds=(1, 2), a=run(20, 45), b=run(20, 30, lr=1e-3), c=run(30, phases=(sam,))
    )
    store, other = Store(tmp_path / "streams"), Store(tmp_path / "alone")
    options = RunOptions(workers=1, replicas=6, together="streams")
    assert launch(study, store, options, lambda _: None)
    assert launch(study, other, RunOptions(workers=1), lambda _: None)
    segments = [each for _, _, chain in study.runs() for each in chain]
    assert max(facts(store, each)["replicas"] for each in segments) == 6
    for each in segments:
        pd.testing.assert_frame_equal(metrics(store, each), metrics(other, each))
        for name, tensor in weights(other, each).items():
            assert torch.equal(weights(store, each)[name], tensor), name


def test_the_seconds_of_runs_side_by_side_add_up_to_those_that_passed(tmp_path):
    """Also after the shorter ones have ended: what is left is estimated from them."""
    segments = [segment(10, seed=1), segment(10, seed=2), segment(150, seed=3)]
    store, times = Store(tmp_path), []
    options = RunOptions(together="streams")
    run_job(store, segments, lambda _: times.append(time.monotonic()), never, options=options)
    spent = [store.outcome(each).seconds for each in segments]
    passed = times[-1] - times[0]
    assert spent[2] > spent[0]
    assert sum(spent) > 0.8 * passed


def test_runs_on_equal_data_share_one_copy_of_it():
    data, cpu = SharedData(), torch.device("cpu")
    segments = [segment(20, seed=seed) for seed in (1, 2)] + [segment(20, seed=1, lr=1e-3)]
    tasks = [data.shared(build_task(each.run.task, each.run.seeds), each, cpu) for each in segments]
    inputs = [task.train.inputs.data_ptr() for task in tasks]
    assert inputs[0] == inputs[2] != inputs[1]
    assert torch.equal(tasks[0].train.inputs, tasks[2].train.inputs)
    assert tasks[0].model is not tasks[2].model


# Memory -------------------------------------------------------------------------------------


def training(of: Segment) -> Training:
    return Training(build_task(of.run.task, of.run.seeds), of)


def test_memory_is_what_a_step_holds():
    """Parameters, gradients, the optimiser's buffers, data, and what batches add."""
    task = Images(source="digits", train_examples=60, validation_examples=40, width=8)
    of = segment(10, task=task)
    own = training(of)
    count = sum(each.numel() for each in own.task.model.parameters())
    data = sum(
        each.nbytes
        for split in (own.task.train, own.task.validation)
        for each in (split.inputs, split.labels)
    )
    statistics = [buffer.clone() for buffer in own.task.model.buffers()]
    sizes = [bytes_of(training(segment(10, task=task, batch_size=size))) for size in (10, 20, 30)]
    buffers = sum(each.nbytes for each in own.task.model.buffers())
    # What a batch adds is proportional to it, and more than its images are, as float32.
    per_image = (sizes[1] - sizes[0]) / 10
    assert sizes[2] - sizes[1] == pytest.approx(10 * per_image, rel=1e-3)
    assert per_image > 2 * 4 * 8 * 8
    momentum = 2 if of.phase.optimizer.name == "adamw" else 1
    fixed = 4 * count * (2 + momentum) + buffers + data
    assert sizes[0] == pytest.approx(fixed + 10 * per_image, rel=0.02)
    for buffer, before in zip(own.task.model.buffers(), statistics, strict=True):
        assert torch.equal(buffer, before)


def test_a_job_takes_no_more_at_once_than_memory_holds(tmp_path, monkeypatch):
    segments = [segment(10, seed=seed) for seed in range(5)]
    needed = bytes_of(training(segments[0]))
    free = 2.6 * needed  # eight tenths of it are two replicas
    monkeypatch.setattr("grokscope.runs.worker.free_bytes", lambda _: free)
    store = Store(tmp_path)
    run_job(store, segments, lambda _: None, never)
    assert [facts(store, each)["replicas"] for each in segments] == [2, 2, 2, 2, 1]
    half = Store(tmp_path / "half")  # two processes share the memory
    run_job(half, segments, lambda _: None, never, place=Place(memory_share=0.4))
    assert [facts(half, each)["replicas"] for each in segments] == [1] * 5


def test_unlike_runs_side_by_side_are_as_many_as_the_largest_allows(tmp_path, monkeypatch):
    wide = TASK.model_copy(update={"width": 64})
    segments = [segment(10, seed=1), segment(10, seed=2, task=wide), segment(10, seed=3)]
    small, large = (bytes_of(training(each)) for each in segments[:2])
    assert large > 3 * small
    monkeypatch.setattr("grokscope.runs.worker.free_bytes", lambda _: 2.6 * large)
    store = Store(tmp_path)
    options = RunOptions(together="streams")
    run_job(store, segments, lambda _: None, never, options=options)
    assert [facts(store, each)["replicas"] for each in segments] == [2, 2, 1]


def test_free_memory_is_below_all_there_is():
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        assert free_bytes(torch.device("cpu")) is None
        return
    total = int(re.search(r"MemTotal:\s+(\d+)", meminfo.read_text())[1]) * 1024
    free = free_bytes(torch.device("cpu"))
    assert free is not None and 0 < free < total


def test_free_memory_heeds_the_limit_of_a_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr("grokscope.engine.memory.CGROUP", tmp_path)
    monkeypatch.setattr("grokscope.engine.memory.MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    assert free_bytes(torch.device("cpu")) == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300000\n")
    assert free_bytes(torch.device("cpu")) == 1_024_000
    (tmp_path / "memory.max").write_text("900000\n")
    assert free_bytes(torch.device("cpu")) == 600_000
