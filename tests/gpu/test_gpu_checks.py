"""The checks: each can fail, and what it says of a CPU is true."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.checks import cases, looks, processes, repeating, steps, together
from benchmarks.gpu.checks.__main__ import CHECKS
from benchmarks.gpu.checks.check import NEEDS_GPU, Check, Found
from benchmarks.gpu.session import Session

from grokscope.engine.state import MODEL, OPTIMIZER, State

SESSION = Session(Path(), time.monotonic() + 1e6, torch.device("cpu"), tiny=True)
FEW = ("equations, short batch", "images, SAM")


@pytest.fixture(autouse=True)
def few_cases(monkeypatch):
    """Two of the runs, short: what is tested here are the checks."""
    every = cases.what_hinders_capture
    monkeypatch.setattr(
        cases, "what_hinders_capture", lambda until: {name: every(until)[name] for name in FEW}
    )
    monkeypatch.setattr(steps, "EAGER", 6)
    monkeypatch.setattr(repeating, "HALF", 4)
    repeating.whole.cache_clear()
    yield
    repeating.whole.cache_clear()


def changed(state: State, prefix: str = MODEL) -> State:
    """A state of which one number is another."""
    name = next(
        name
        for name, tensor in state.tensors.items()
        if name.startswith(prefix) and tensor.is_floating_point() and tensor.dim()
    )
    tensor = state.tensors[name].clone()
    tensor.view(-1)[0] += 1e-3
    return replace(state, tensors=state.tensors | {name: tensor})


def ungated(check: Check) -> Check:
    """The check on any device, so that its judgement can be tested on a CPU."""
    return replace(check, needs_gpu=False)


def test_a_check_is_named_by_a_sentence_and_says_what_a_failure_would_mean():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert len(check.name.split()) >= 5
        assert check.meaning.endswith(".")


def test_what_needs_a_gpu_is_skipped_on_a_cpu_and_never_passed():
    skipped = [check for check in CHECKS if check.needs_gpu]
    assert len(skipped) == 6
    for check in skipped:
        entry = check(SESSION)
        assert (entry["status"], entry["reason"]) == ("skipped", NEEDS_GPU)


def test_nan_never_passes():
    assert not Found(float("nan"), 1.0, "").passed


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (ungated(steps.a_captured_step_equals_an_eager_one_to_the_bit), "graphs"),
        (repeating.thirty_steps_and_thirty_more_are_sixty, "state"),
    ],
)
def test_a_run_that_ends_elsewhere_is_found(monkeypatch, check, name):
    """Captured steps, or a resumed run, that end with another number than they should."""
    module = {"graphs": steps, "state": repeating}[name]
    assert check(SESSION)["status"] == "passed"
    make = module.training_of

    def other(*arguments, **settings):
        training = make(*arguments, **settings)
        if settings.get(name):
            end = training.state
            monkeypatch.setattr(training, "state", lambda: changed(end()), raising=False)
        return training

    monkeypatch.setattr(module, "training_of", other)
    entry = check(SESSION)
    assert (entry["status"], entry["measured"]) == ("failed", len(FEW))
    assert entry["reason"] == entry["meaning"]


def test_tf32_is_judged_by_weights_and_by_looks(monkeypatch):
    """On a CPU it has no effect, which is what the check must find, and nothing else."""
    check = ungated(looks.tf32_is_used_where_a_phase_asks_for_it_and_nowhere_else)
    monkeypatch.setattr(looks, "TRAINED", 20)
    entry = check(SESSION)
    assert entry["measured"] == len(looks.RUNS)
    assert set(map(str, entry["details"].values())) == {"['TF32 changes nothing']"}
    monkeypatch.setattr(looks, "relative", lambda *_: 1.0)
    assert check(SESSION)["measured"] == 2 * len(looks.RUNS)


def test_a_checkpoint_that_lacks_momentum_is_found(monkeypatch):
    make = repeating.training_of

    def forgetful(run, device, state=None):
        if state is not None:
            kept = {
                name: torch.zeros_like(tensor) if name.startswith(OPTIMIZER) else tensor
                for name, tensor in state.tensors.items()
            }
            state = replace(state, tensors=kept)
        return make(run, device, state=state)

    monkeypatch.setattr(repeating, "training_of", forgetful)
    assert repeating.thirty_steps_and_thirty_more_are_sixty(SESSION)["status"] == "failed"


def test_a_second_run_that_differs_is_found(monkeypatch):
    seeds = iter(range(100))
    make = repeating.training_of
    monkeypatch.setattr(
        repeating, "training_of", lambda run, device: make(run, device, seed=next(seeds))
    )
    check = repeating.the_same_run_made_twice_is_the_same_to_the_bit
    assert check(SESSION)["status"] == "failed"


@pytest.mark.parametrize(
    "check",
    [
        together.four_unlike_runs_side_by_side_equal_each_alone,
        together.replicas_in_one_pass_equal_each_run_alone,
    ],
)
def test_runs_that_disturb_each_other_are_found(monkeypatch, check):
    every = cases.what_hinders_capture
    monkeypatch.setattr(cases, "four_unlike", lambda until: every(until))
    monkeypatch.setattr(together, "STEPS", 6)
    monkeypatch.setattr(cases, "STEPS", 4)
    assert check(SESSION)["status"] == "passed"
    for name in ("streams_of", "replicas_of"):
        make = getattr(together, name)

        def disturbed(*arguments, make=make, **settings):
            runs = make(*arguments, **settings)
            end = runs.state
            monkeypatch.setattr(runs, "state", lambda place: changed(end(place)), raising=False)
            return runs

        monkeypatch.setattr(together, name, disturbed)
    assert check(SESSION)["status"] == "failed"


def test_float64_on_the_same_device_is_equal_and_another_step_is_found(monkeypatch):
    check = steps.twenty_steps_in_float64_equal_those_of_the_cpu
    runs = {name: cases.every_intervention()[name] for name in ("modular, plain", "images, plain")}
    monkeypatch.setattr(cases, "every_intervention", lambda: runs)
    assert check.function(SESSION).measured == 0
    monkeypatch.setattr(cases, "STEPS", 3)
    make, seeds = steps.training_of, iter((1, 2, 3, 4))

    def other(*arguments, **settings):
        return make(*arguments, seed=next(seeds), **settings)

    monkeypatch.setattr(steps, "training_of", other)
    assert not check.function(SESSION).passed


def to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded to the ten bits of mantissa that TF32 keeps of float32's 23."""
    bits = tensor.detach().clone().view(torch.int32)
    return ((bits + 2**12) & ~(2**13 - 1)).view(torch.float32)


def test_a_look_that_rounds_to_tf32_is_found(monkeypatch):
    check = looks.a_look_in_float32_equals_one_in_float64_on_the_cpu
    assert check(SESSION)["status"] == "passed"
    look = looks.measured_now

    def rounded(training):
        for parameter in training.task.model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = to_tf32(parameter)
        return look(training)

    monkeypatch.setattr(looks, "measured_now", rounded)
    entry = check(SESSION)
    assert entry["status"] == "failed"
    assert entry["measured"] > 3 * looks.ROUNDING


def test_a_worker_that_computes_something_else_is_found(monkeypatch):
    check = processes.two_spawned_workers_leave_what_one_process_leaves
    monkeypatch.setattr(processes, "launch", lambda runs, store, *_: store.save_experiment(runs))
    assert check(SESSION)["status"] == "failed"


def test_a_group_that_measures_something_else_is_found(monkeypatch):
    check = processes.a_process_group_of_one_measures_what_a_plain_probe_does
    assert check(SESSION)["status"] == "passed"
    probe = processes.Probe

    class Other(probe):
        def measure(self, batches, reference=None):
            if self.group is not None:
                batches = [(inputs[:-1], labels[:-1]) for inputs, labels in batches]
            return super().measure(batches, reference)

    monkeypatch.setattr(processes, "Probe", Other)
    assert check(SESSION)["status"] == "failed"
