"""One step of training with interventions, against a loop written out by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from torch import Tensor, nn
from torch.nn import functional

from grokscope.engine.loop import Training
from grokscope.engine.observe import Row
from grokscope.engine.update import Update
from grokscope.interventions import FrobeniusCap, LogitScaleCap, Penalty, SharpnessAware
from grokscope.interventions.settings import MEASURES
from grokscope.measures import records
from grokscope.probe import Probe
from grokscope.spec import Optimizer, Phase
from grokscope.tasks import Split, build_task
from made_clusters import (
    OPTIMIZERS,
    batches,
    by_hand,
    clusters,
    cooled,
    gini,
    kappa,
    ncc,
    of,
    published,
    smoothed,
    trained,
)
from single_steps import make_step
from small_runs import segment

FLATTENED = Penalty(
    measure="relative_flatness_bound", weight=-0.02, temperature=2.0, normalize_features=True
)
SAM = SharpnessAware(radius=0.3)
CASES = {
    "nothing": ({}, {}),
    "flatness, maximised": (
        {"penalties": (Penalty(measure="relative_flatness", weight=-0.05),)},
        {"penalty_of": kappa, "weight": -0.05},
    ),
    "the published penalty": (
        {"penalties": (FLATTENED,)},
        {"penalty_of": published, "weight": -0.02},
    ),
    "ncc, maximised": (
        {"penalties": (Penalty(measure="ncc", weight=-0.3),)},
        {"penalty_of": ncc, "weight": -0.3},
    ),
    "two penalties": (
        {
            "penalties": (
                Penalty(measure="gini", weight=0.5),
                Penalty(measure="relative_flatness", weight=0.02),
            )
        },
        {"penalty_of": lambda *given: 0.5 * gini(*given) + 0.02 * kappa(*given), "weight": 1.0},
    ),
    "label smoothing": ({"label_smoothing": 0.3}, {"loss_of": smoothed}),
    "temperature": ({"temperature": 3.0}, {"loss_of": cooled}),
    "temperature beside a penalty": (
        {"temperature": 3.0, "penalties": (Penalty(measure="gini", weight=0.5),)},
        {"loss_of": cooled, "penalty_of": gini, "weight": 0.5},
    ),
    "a cap": ({"constraints": (FrobeniusCap(cap=0.8),)}, {"cap": 0.8}),
    "SAM": ({"sharpness_aware": SAM}, {"radius": 0.3}),
    "SAM, a penalty and a cap": (
        {
            "sharpness_aware": SAM,
            "penalties": (Penalty(measure="relative_flatness", weight=-0.05),),
            "constraints": (FrobeniusCap(cap=1.5),),
        },
        {"radius": 0.3, "penalty_of": kappa, "weight": -0.05, "cap": 1.5},
    ),
}


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    for (name, own), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            own, theirs, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("interventions", "plain"), CASES.values(), ids=CASES)
def test_a_step_is_what_a_plain_loop_does(interventions, plain, optimizer):
    phase = Phase(until=30, optimizer=OPTIMIZERS[optimizer], **interventions)
    task, other, untouched = clusters(), clusters(), clusters()
    trained(task, of(phase))
    by_hand(phase, other, **plain)
    assert_alike(task.model, other.model)
    if plain:  # and the case can tell
        by_hand(phase, untouched)
        apart = task.model[-1].weight - untouched.model[-1].weight
        assert float(apart.detach().abs().max()) > 1e-3


def test_running_statistics_count_the_first_pass_of_sam_alone():
    def after_one_step(**interventions: object) -> dict[str, Tensor]:
        torch.manual_seed(2)
        layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)]
        task = clusters(nn.Sequential(*layers).double())
        make_step(Update(task, Phase(until=9, **interventions)), 1, torch.arange(16))
        return {name: each.clone() for name, each in task.model.named_buffers()}

    plain, twice = after_one_step(), after_one_step(sharpness_aware=SAM)
    assert {name: each.tolist() for name, each in plain.items()} == {
        name: each.tolist() for name, each in twice.items()
    }


# Schedules.


@pytest.mark.parametrize("name", ["flatness, maximised", "a cap", "SAM"])
def test_a_schedule_switches_on_after_its_start_and_off_after_its_stop(name):
    interventions, plain = CASES[name]
    scheduled = {
        key: tuple(each.model_copy(update={"start": 4, "stop": 11}) for each in value)
        if isinstance(value, tuple)
        else value.model_copy(update={"start": 4, "stop": 11})
        for key, value in interventions.items()
    }
    for until in (4, 5, 11, 12, 20):
        phase = Phase(until=until, optimizer=OPTIMIZERS["sgd"], **scheduled)
        task, other = clusters(), clusters()
        trained(task, of(phase))
        by_hand(phase, other, **plain, on=lambda step: step in range(5, 12))
        assert_alike(task.model, other.model)


def test_a_schedule_counts_the_steps_of_the_run_not_of_the_phase():
    penalty = Penalty(measure="gini", weight=-1.0, start=12, stop=15)
    phases = [
        Phase(until=until, optimizer=OPTIMIZERS["sgd"], penalties=(penalty,)) for until in (10, 20)
    ]
    first = Training(clusters(), of(phases[0]))
    list(first.run())
    second = Training(clusters(), of(*phases), first.state())
    list(second.run())
    other = clusters()
    by_hand(phases[1], other, penalty_of=gini, weight=-1.0, on=lambda step: step in range(13, 16))
    assert_alike(second.task.model, other.model)


# What is logged.


def logged(rows: list[Row], measure: str) -> dict[int, float]:
    assert {row.split for row in rows if row.measure == measure} <= {"train"}
    return {row.step: row.value for row in rows if row.measure == measure}


@pytest.mark.parametrize("sam", [None, SAM])
def test_a_penalty_is_logged_as_its_mean_since_the_last_look(sam):
    penalties = (Penalty(measure="relative_flatness", weight=-0.05),)
    phase = Phase(until=30, optimizer=OPTIMIZERS["sgd"], penalties=penalties, sharpness_aware=sam)
    found = logged(trained(clusters(), of(phase)), "penalty_relative_flatness")
    radius = sam.radius if sam else 0.0  # of its two passes the first is logged
    values = by_hand(phase, clusters(), penalty_of=kappa, weight=-0.05, radius=radius)
    looks = [0, 1, 2, 4, 9, 18, 27, 30]
    assert sorted(found) == looks[1:]
    for before, step in pairwise(looks):
        assert found[step] == pytest.approx(sum(values[before:step]) / (step - before), rel=1e-6)


def test_while_a_penalty_is_off_it_has_no_value():
    penalties = (Penalty(measure="gini", weight=-0.1, start=3, stop=12),)
    phase = Phase(until=30, optimizer=OPTIMIZERS["sgd"], penalties=penalties)
    found = logged(trained(clusters(), of(phase)), "penalty_gini")
    values = by_hand(
        phase, clusters(), penalty_of=gini, weight=-0.1, on=lambda step: 3 < step <= 12
    )
    expected = {4: values[3], 9: sum(values[4:9]) / 5, 18: sum(values[9:12]) / 3}
    assert found == pytest.approx(expected, rel=1e-6)


def test_penalties_have_names_of_their_own():
    taken = {*records(), "test_loss"}
    names = [Penalty(measure=each, weight=1.0).name for each in MEASURES]
    own = Penalty(measure="measures.py:loss", weight=1.0).name
    assert own == "penalty_loss"
    assert len({*names, own}) == len(MEASURES) + 1
    assert not taken & {*names, own}


def test_what_bears_the_name_of_a_measure_is_what_the_probe_sees():
    penalties = (Penalty(measure="relative_flatness", weight=-0.05), FLATTENED)
    phase = Phase(until=20, optimizer=OPTIMIZERS["sgd"], penalties=penalties)
    task = clusters()
    rows = trained(task, of(phase))
    assert max(Counter((row.step, row.split, row.measure) for row in rows).values()) == 1
    seen = Probe(task.model).measure([(task.train.inputs, task.train.labels)])
    last = {row.measure: row.value for row in rows if (row.step, row.split) == (20, "train")}
    for name, value in seen.items():
        assert last[name] == pytest.approx(value)
    assert last["penalty_relative_flatness"] != pytest.approx(seen["relative_flatness"], rel=1e-3)


# Augmentation.


def test_the_network_learns_from_augmented_examples_and_is_measured_on_plain_ones():
    phase = Phase(until=20, optimizer=OPTIMIZERS["adamw"], sharpness_aware=SAM)
    seen: list[Tensor] = []

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(inputs)
        return -inputs

    task, other = clusters(augment=augment), clusters()
    rows = trained(task, of(phase))
    plain = replace(other, train=Split(-other.train.inputs, other.train.labels))
    by_hand(phase, plain, radius=0.3)
    assert_alike(task.model, plain.model)
    expected = batches(task, 20)
    assert len(seen) == 20  # both passes of SAM see the same
    for inputs, places in zip(seen, expected, strict=True):
        assert torch.equal(inputs, task.train.inputs[places])
    loss = functional.cross_entropy(task.model(other.train.inputs), other.train.labels)
    (last,) = [
        row.value for row in rows if (row.step, row.split, row.measure) == (20, "train", "loss")
    ]
    assert last == pytest.approx(float(loss.detach()), rel=1e-9)


def drawn(seed: int, steps: range) -> list[float]:
    """The first random number that augmentation gets in each step."""
    numbers: list[float] = []

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        numbers.append(float(torch.rand((), generator=generator)))
        return inputs

    update = Update(clusters(augment=augment), Phase(until=50))
    for step in steps:
        make_step(update, step, torch.arange(8), seed)
    return numbers


def test_augmentation_depends_on_seed_and_step_alone():
    whole = drawn(3, range(1, 21))
    assert len(set(whole)) == 20
    torch.manual_seed(5)
    assert drawn(3, range(11, 21)) == whole[10:]
    assert not set(drawn(4, range(1, 21))) & set(whole)


# Interruptions, and how runs end.

REMEMBERED = Phase(
    until=30,
    optimizer=Optimizer(lr=1e-2, weight_decay=0.5, warmup_steps=3),
    penalties=(
        Penalty(measure="gini", weight=0.1, start=7, stop=23),
        Penalty(measure="ncc", weight=0.05, memory=0.9),
    ),
    constraints=(LogitScaleCap(cap=1.0),),
)


@settings(max_examples=10, deadline=None)
@given(ticks=integers(0, 9))
def test_a_run_that_remembers_class_means_continues_as_if_it_had_not_been_stopped(ticks):
    own = segment(30, phases=(REMEMBERED,))

    def begin(state=None) -> Training:
        return Training(build_task(own.run.task, own.run.seeds), own, state)

    whole = begin()
    rows = [row for tick in whole.run() for row in tick.rows]
    begun, first = begin(), []
    for count, tick in enumerate(begun.run()):
        first += tick.rows
        if count == ticks:
            break
    state = begun.state()
    torch.manual_seed(99)
    going_on = begin(state)
    rest = [row for tick in going_on.run() for row in tick.rows]
    assert first + rest == rows
    final, expected = going_on.state().tensors, whole.state().tensors
    assert "memory/1" in expected
    assert final.keys() == expected.keys()
    assert all(torch.equal(final[name], expected[name]) for name in final)


def test_a_memory_ends_with_its_phase():
    phases = [REMEMBERED, REMEMBERED.model_copy(update={"until": 40, "penalties": ()})]
    own = segment(30, phases=(REMEMBERED,))
    first = Training(build_task(own.run.task, own.run.seeds), own)
    list(first.run())
    after = segment(30, phases=tuple(phases))
    second = Training(build_task(own.run.task, own.run.seeds), after, first.state())
    rows = [row for tick in second.run() for row in tick.rows]
    assert not any(row.measure.startswith("penalty_") for row in rows)
    assert not any(name.startswith("memory/") for name in second.state().tensors)


def test_a_batch_of_one_class_has_no_ncc_and_training_goes_on():
    penalties = (Penalty(measure="ncc", weight=-0.3),)
    phase = Phase(until=20, optimizer=OPTIMIZERS["sgd"], penalties=penalties)
    task, other = clusters(examples=25), clusters(examples=25)  # each fourth batch is one example
    found = logged(trained(task, of(phase)), "penalty_ncc")
    by_hand(phase, other, penalty_of=ncc, weight=-0.3, on=lambda step: step % 4 != 0)
    assert_alike(task.model, other.model)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("measure", [*MEASURES, None])
def test_a_penalty_that_meets_nan_ends_the_run_as_diverged(measure):
    calls: list[int] = []

    def augment(inputs: Tensor, _: torch.Generator) -> Tensor:
        calls.append(1)
        return inputs * math.nan if len(calls) == 5 else inputs

    penalties = (Penalty(measure=measure, weight=0.1),) if measure else ()
    phase = Phase(until=30, optimizer=OPTIMIZERS["sgd"], penalties=penalties)
    ticks = list(Training(clusters(augment=augment), of(phase)).run())
    assert [tick.step for tick in ticks if tick.diverged] == [ticks[-1].step]
    assert ticks[-1].step == (5 if measure else 9)  # without a penalty the next look sees it
    assert all(math.isfinite(row.value) for tick in ticks for row in tick.rows)


def test_a_head_that_is_not_called_is_refused_where_it_would_be_changed():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 4).double()

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.head.weight.T

    task = clusters(Aside())
    make_step(Update(task, Phase(until=3)), 1, torch.arange(8))
    capped = Phase(until=3, constraints=(FrobeniusCap(cap=0.1),))
    with pytest.raises(ValueError, match="Aside did not call its head .* would have no effect"):
        make_step(Update(task, capped), 1, torch.arange(8))


def test_the_test_split_is_measured_at_the_end_of_a_phase_alone():
    phases = [Phase(until=until, optimizer=OPTIMIZERS["sgd"]) for until in (12, 30)]
    test = Split(clusters().validation.inputs + 1, clusters().validation.labels)
    first = Training(clusters(test=test), of(phases[0]))
    early = [row for tick in first.run() for row in tick.rows]
    second = Training(clusters(test=test), of(*phases), first.state())
    late = [row for tick in second.run() for row in tick.rows]
    assert [{row.step for row in rows if row.split == "test"} for rows in (early, late)] == [
        {12},
        {30},
    ]
    (accuracy,) = [row.value for row in late if (row.split, row.measure) == ("test", "accuracy")]
    right = second.task.model(test.inputs).argmax(-1) == test.labels
    assert accuracy == float(right.double().mean())
    assert not any(row.split == "test" for row in trained(clusters(), of(phases[0])))


def test_label_smoothing_needs_a_loss_that_takes_it():
    task = replace(clusters(), loss=lambda logits, labels: logits.square().mean())
    with pytest.raises(ValueError, match="label_smoothing"):
        Update(task, Phase(until=3, label_smoothing=0.1))
