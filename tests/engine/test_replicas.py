"""Replicas trained together, against each of them trained alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from together import (
    DIGITS,
    FLAT,
    PUBLISHED,
    SGD,
    alone,
    assert_same_rows,
    assert_same_states,
    double,
    phase,
    rows_of,
    segment,
    together,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.engine.loop import Training
from grokscope.engine.replicas import Replicas
from grokscope.interventions import FrobeniusCap, LogitScaleCap, Penalty
from grokscope.spec import Optimizer, Phase, Segment
from grokscope.tasks import Split, Task, build_task
from made_clusters import clusters, of
from small_runs import TASK, run

SHAPES = {
    "seeds, learning rates, weight decays, optimisers": [
        segment(phase(), seed=1),
        segment(phase(optimizer=Optimizer(lr=1e-3, weight_decay=1.0)), seed=2),
        segment(phase(optimizer=SGD), seed=3),
    ],
    "strengths of a penalty, and no strength": [
        segment(phase(penalties=(FLAT.model_copy(update={"weight": weight}),)), seed=seed)
        for seed, weight in ((1, 0.01), (1, -0.01), (2, 0.0))
    ],
    "caps": [
        segment(phase(optimizer=SGD, penalties=(PUBLISHED,), constraints=caps), seed=4)
        for caps in ((FrobeniusCap(cap=2.0),), (FrobeniusCap(cap=4.0), LogitScaleCap(cap=3.0)))
    ],
    "one token, warm up, label smoothing, temperature": [
        segment(
            phase(label_smoothing=0.1, temperature=2.0),
            seed=seed,
            task=TASK.model_copy(update={"answers": 1}),
        )
        for seed in (1, 2)
    ],
}


@pytest.mark.parametrize("segments", SHAPES.values(), ids=SHAPES.keys())
def test_each_replica_equals_its_solo_run_in_weights_and_in_measures(segments):
    replicas, ticks = together(segments)
    # Before any run alone: that seeds the global generator, which is part of a state.
    states = [replicas.state(place) for place in range(len(segments))]
    for place, each in enumerate(segments):
        training, expected = alone(each)
        assert_same_states(states[place], training.state())
        assert_same_rows(rows_of(ticks[place]), rows_of(expected), rtol=1e-6, atol=1e-8)
        assert [tick.step for tick in ticks[place]] == [tick.step for tick in expected]


def test_in_single_precision_replicas_differ_by_rounding():
    segments = [segment(phase(until=40), seed=seed) for seed in (1, 2)]

    def single(each: Segment) -> Task:
        return build_task(each.run.task, each.run.seeds)

    replicas, _ = together(segments, single)
    for place, each in enumerate(segments):
        training, _ = alone(each, single)
        assert_same_states(replicas.state(place), training.state(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("augmented", [False, True])
def test_batch_norm_keeps_the_statistics_of_each_replica(augmented):
    images = DIGITS.model_copy(update={"crop_padding": 1, "flip": True} if augmented else {})
    segments = [
        run(12, phases=(Phase(until=12, optimizer=optimizer),), task=images).segments(seed)[-1]
        for seed, optimizer in ((1, SGD), (2, SGD), (2, SGD.model_copy(update={"lr": 0.01})))
    ]

    replicas, ticks = together(segments)
    means = []
    for place, each in enumerate(segments):
        training, expected = alone(each)
        own = replicas.state(place)
        assert_same_states(own, training.state())
        assert_same_rows(rows_of(ticks[place]), rows_of(expected), rtol=1e-6, atol=1e-8)
        means += [value for name, value in own.tensors.items() if name.endswith("running_mean")][:1]
    assert not torch.equal(means[0], means[1])


def test_replicas_go_on_from_solo_states_and_solo_runs_from_theirs():
    first = [segment(phase(until=40), seed=seed) for seed in (1, 2)]
    both = [
        segment(phase(until=40), phase(until=90, penalties=(FLAT,)), seed=seed) for seed in (1, 2)
    ]
    states = [alone(each)[0].state() for each in first]
    ended, _ = together(both, states=states)
    begun, _ = together(first)
    for place, each in enumerate(both):
        expected = alone(each, state=states[place])[0].state()
        assert_same_states(ended.state(place), expected)
        mixed = alone(each, state=begun.state(place))[0].state()
        assert_same_states(mixed, expected)


def test_a_state_in_the_middle_of_a_phase_is_gone_on_from_exactly():
    segments = [segment(phase(until=60, penalties=(FLAT,)), seed=seed) for seed in (1, 2)]
    tasks = [double(each) for each in segments]
    replicas = Replicas(tasks, segments, [None, None])
    for told in replicas.run():
        if told[0].step == 30:
            break
    states = [replicas.state(place) for place in (0, 1)]
    whole, ticks = together(segments)
    rest, later = together(segments, states=states)
    for place in (0, 1):
        assert_same_states(rest.state(place), whole.state(place), rtol=0, atol=0)
        expected = [row for row in rows_of(ticks[place]) if row.step > 30]
        assert rows_of(later[place]) == expected


@pytest.mark.parametrize("penalties", [(), (FLAT,)])
def test_a_replica_that_diverges_ends_alone(penalties):
    mad = phase(optimizer=SGD.model_copy(update={"lr": 1e160}), penalties=penalties)
    sane = [segment(phase(penalties=penalties), seed=seed) for seed in (1, 2)]
    segments = [sane[0], segment(mad, seed=3), sane[1]]
    replicas, ticks = together(segments)
    expected = alone(segments[1])[1]
    assert ticks[1][-1].diverged
    assert ticks[1][-1].step == expected[-1].step
    assert rows_of(ticks[1])[-1] == rows_of(expected)[-1]
    for place in (0, 2):
        training, expected = alone(segments[place])
        assert not any(tick.diverged for tick in ticks[place])
        assert_same_states(replicas.state(place), training.state())
        assert_same_rows(rows_of(ticks[place]), rows_of(expected), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", [SGD, Optimizer(lr=1e-2)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("penalties", [(), (FLAT,)], ids=["no penalty", "penalty"])
def test_what_is_left_of_a_replica_that_diverged_is_what_is_left_of_it_alone(penalties, optimizer):
    """With a penalty, weights, buffers, counters and sums before the step that it broke off."""
    phases = (Phase(until=20, optimizer=optimizer, penalties=penalties),)
    segments = [of(*phases, seed=seed, train_examples=40) for seed in (1, 2, 3)]

    def made(each: Segment) -> Task:
        task = clusters()
        if each.run.seeds.order == 2:  # one that is not among those that are measured
            task.train.inputs[41] = float("nan")
        return task

    replicas, left = Replicas([made(each) for each in segments], segments, [None] * 3), []
    for told in replicas.run():
        left += [replicas.state(place) for place, tick in told.items() if tick.diverged]
    assert len(left) == 1
    training, ticks = alone(segments[1], made)
    expected = training.state()
    assert left[0].step == expected.step == ticks[-1].step > 1
    finite = expected.tensors["model/0.weight"].isfinite().all()
    assert bool(finite) == bool(penalties)
    assert left[0].tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        if name != "generator":  # a run alone has seeded it
            torch.testing.assert_close(left[0].tensors[name], tensor, equal_nan=True, msg=name)
    for place in (0, 2):
        assert_same_states(replicas.state(place), alone(segments[place], made)[0].state())


def test_a_step_of_thirty_replicas_costs_hardly_more_kernels_than_one_of_two():
    """Of each replica its batch is drawn: two kernels. Nothing else grows."""
    counts = {}
    for size in (2, 30):
        segments = [segment(phase(), seed=seed) for seed in range(size)]
        replicas = Replicas([double(each) for each in segments], segments, [None] * size)
        replicas.advance()  # what is made once is made at the first step

        class Count(TorchDispatchMode):
            made = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                Count.made += not func.is_view
                return func(*args, **(kwargs or {}))

        with Count():
            replicas.advance()
        counts[size] = Count.made
    assert counts[30] - counts[2] <= 28 * 4


def test_it_ends_when_no_replica_is_left():
    mad = phase(optimizer=SGD.model_copy(update={"lr": 1e160}))
    _, ticks = together([segment(mad, seed=1), segment(mad, seed=2)])
    assert all(own[-1].diverged and own[-1].step < 120 for own in ticks)


def test_a_batch_of_one_class_counts_for_its_own_replica_alone():
    """NCC is not defined on such a batch; whether it counts then differs between replicas."""
    rare = clusters(examples=20)
    labels = torch.where(torch.arange(20) < 17, 0, 1)
    split = replace(rare.train, labels=labels)
    phases = (Phase(until=40, optimizer=SGD, penalties=(Penalty(measure="ncc", weight=0.05),)),)
    segments = [of(*phases, seed=seed) for seed in (1, 2)]

    def made(_: Segment) -> Task:
        return clusters(examples=20, train=split, validation=split)

    drawn = [labels[batch] for each in segments for batch in _batches(made(each), each, 40)]
    assert 0 < sum(len(own.unique()) == 1 for own in drawn) < 80
    replicas, ticks = together(segments, made)
    for place, each in enumerate(segments):
        training, expected = alone(each, made)
        assert_same_states(replicas.state(place), training.state())
        # Of two classes the angle is 180 degrees, where a last digit of its cosine is 1e-6 degrees.
        assert_same_rows(rows_of(ticks[place]), rows_of(expected), rtol=1e-6, atol=1e-6)


def _batches(task: Task, own: Segment, count: int) -> list[Tensor]:
    order = Training(task, own).order
    return [order.batch(step) for step in range(1, count + 1)]


def test_of_data_that_all_share_batches_are_drawn_at_once():
    """Runs of other orders and initial weights, on one split."""
    segments = [segment(phase(until=20), seed=seed) for seed in (1, 2)]
    one = double(segments[0])
    tasks = [replace(double(each), train=one.train) for each in segments]
    apart = [replace(task, train=Split(one.train.inputs, one.train.labels)) for task in tasks]
    apart = [
        replace(task, model=double(each).model) for task, each in zip(apart, segments, strict=True)
    ]
    shared, separate = (Replicas(each, segments, [None, None]) for each in (tasks, apart))
    assert shared.one_gather and not separate.one_gather
    for replicas in (shared, separate):
        replicas.advance(20)
    for place in (0, 1):
        assert_same_states(shared.state(place), separate.state(place), rtol=0, atol=0)
