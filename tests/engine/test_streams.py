"""Runs side by side in one process, against each of them by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from step_cases import CASES, Case, case, dropping, images, modular
from torch import Tensor

from grokscope.engine.feed import Feed, Order, epoch_order
from grokscope.engine.loop import Training
from grokscope.engine.state import State
from grokscope.engine.streams import Streams
from grokscope.interventions import Penalty, SharpnessAware, SpectralCap
from grokscope.spec import Optimizer, Phase, Segment
from grokscope.tasks import Task
from grokscope.tasks.images import CropAndFlip
from made_clusters import clusters, of

UNLIKE = {
    "equations": case(modular),
    "images with a memory": CASES["images, penalty: ncc with memory"],
    "dropout": case(dropping),
    "dropout, another seed": case(dropping, seed=2),
    "SAM": case(images, sharpness_aware=SharpnessAware(radius=0.05)),
    "a spectral cap": case(modular, constraints=(SpectralCap(cap=0.5),)),
    "augmented": CASES["images, augmented"],
}


def side_by_side(cases: list[Case], states: list[State | None] | None = None):
    streams = Streams(
        [each.task() for each in cases],
        [each.segment for each in cases],
        states or [None] * len(cases),
    )
    rows: list[list] = [[] for _ in cases]
    ended: dict[int, State] = {}
    for ticks in streams.run():
        for place, tick in ticks.items():
            rows[place] += tick.rows
            if tick.step == cases[place].segment.phase.until:
                ended[place] = streams.state(place)
    return rows, ended


def alone(one: Case, state: State | None = None):
    training = Training(one.task(), one.segment, state)
    rows = [row for tick in training.run() for row in tick.rows]
    return rows, training.state()


def assert_equal(found: State, expected: State) -> None:
    assert found.step == expected.step
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


def test_unlike_runs_side_by_side_are_what_each_is_alone_to_the_bit():
    """Also those that draw random numbers from the one generator that there is."""
    cases = list(UNLIKE.values())
    rows, ended = side_by_side(cases)
    for place, each in enumerate(cases):
        expected, state = alone(each)
        assert rows[place] == expected
        assert_equal(ended[place], state)


def test_on_the_schedule_of_a_gpu_runs_are_the_same(monkeypatch):
    """Longer ticks, work for a run while others are looked at, ends noticed at looks."""
    monkeypatch.setattr("grokscope.engine.loop.STEPS_PER_TICK_ON_GPU", 7)
    cases = list(UNLIKE.values())
    expected = [alone(each) for each in cases]

    def streams_from(states: list[State | None]) -> Streams:
        parts = [each.task() for each in cases], [each.segment for each in cases], states
        streams = Streams(*parts)
        for training in streams.trainings:
            training.on_gpu = True
        return streams

    def rows_until(streams: Streams, until: int) -> list[list]:
        rows: list[list] = [[] for _ in cases]
        for ticks in streams.run():
            for place, tick in ticks.items():
                rows[place] += tick.rows
            if min(tick.step for tick in ticks.values()) >= until:
                break
        return rows

    begun = streams_from([None] * len(cases))
    early = rows_until(begun, 9)
    states = [begun.state(place) for place in range(len(cases))]
    assert max(state.step for state in states) > 9  # they were given work ahead
    late = rows_until(streams_from(list(states)), 100)
    for place, (rows, _) in enumerate(expected):
        assert early[place] + late[place] == rows


def test_runs_of_other_lengths_end_when_they_end():
    cases = [UNLIKE["equations"], UNLIKE["dropout"]]
    short = of_length(cases[0], 11)
    rows, ended = side_by_side([short, cases[1]])
    assert (ended[0].step, ended[1].step) == (11, 25)
    assert rows[0] == alone(short)[0]
    assert_equal(ended[1], alone(cases[1])[1])


def of_length(one: Case, until: int) -> Case:
    phase = one.segment.phase.model_copy(update={"until": until})
    run = one.segment.run.model_copy(update={"phases": (phase,)})
    return replace(one, segment=Segment(run=run))


def test_runs_side_by_side_resume_from_states_at_different_steps():
    cases = [UNLIKE["dropout"], UNLIKE["dropout, another seed"]]
    streams = Streams([each.task() for each in cases], [each.segment for each in cases], [None] * 2)
    for ticks in streams.run():
        if ticks[0].step == 9:
            break
    early = streams.state(0)
    for ticks in streams.run():
        if ticks[1].step >= 18:
            break
    late = streams.state(1)
    assert (early.step, late.step) == (9, 18)
    torch.manual_seed(77)
    _, ended = side_by_side(cases, [early, late])
    for place, each in enumerate(cases):
        assert_equal(ended[place], alone(each)[1])


def test_a_run_that_is_at_its_end_is_not_looked_at_again():
    cases = [UNLIKE["equations"], UNLIKE["dropout"]]
    _, state = alone(cases[0])
    rows, ended = side_by_side(cases, [state, None])
    assert rows[0] == [] and 0 not in ended
    assert rows[1] == alone(cases[1])[0]


@pytest.mark.parametrize("penalties", [(), (Penalty(measure="gini", weight=0.1),)])
def test_a_run_that_diverges_ends_alone(penalties):
    """At a batch that holds NaN: with a penalty in that step, without one at the next look."""

    def broken(of: Segment) -> Task:
        task = clusters()
        if of.run.seeds.order == 2:
            task.train.inputs[41] = float("nan")  # not among those that are measured
        return task

    optimizer = Optimizer(name="sgd", lr=1e-2)
    cases = [
        Case(
            broken,
            of(
                Phase(until=30, optimizer=optimizer, penalties=penalties),
                seed=seed,
                train_examples=40,
            ),
        )
        for seed in (1, 2, 3)
    ]
    streams = Streams([each.task() for each in cases], [each.segment for each in cases], [None] * 3)
    last = {}
    for ticks in streams.run():
        last |= ticks
    found = streams.state(2)  # before any run alone: that seeds the global generator
    expected = list(Training(cases[1].task(), cases[1].segment).run())[-1]
    assert last[1] == expected and last[1].diverged
    assert [last[place].diverged for place in (0, 2)] == [False, False]
    assert_equal(found, alone(cases[2])[1])


def test_a_run_that_is_not_finite_from_the_start_ends_alone():
    def broken(of: Segment) -> Task:
        task = clusters()
        if of.run.seeds.order == 2:
            task.train.inputs[0] = float("nan")
        return task

    phase = Phase(until=30, optimizer=Optimizer(name="sgd", lr=1e-2))
    cases = [Case(broken, of(phase, seed=seed)) for seed in (1, 2, 3)]
    streams = Streams([each.task() for each in cases], [each.segment for each in cases], [None] * 3)
    ticks = list(streams.run())
    assert ticks[0][1].diverged and ticks[0][1].step == 0
    assert not any(1 in later for later in ticks[1:])
    assert ticks[-1][0].step == ticks[-1][2].step == 30
    (only,) = Training(cases[1].task(), cases[1].segment).run()
    assert only == ticks[0][1]


def test_steps_can_be_made_without_looks():
    cases = [UNLIKE["equations"], UNLIKE["dropout"]]
    streams = Streams([each.task() for each in cases], [each.segment for each in cases], [None] * 2)
    streams.advance(7)
    streams.advance(100)
    for place, each in enumerate(cases):
        found, expected = streams.state(place), alone(each)[1]
        assert found.step == 25
        for name, tensor in expected.tensors.items():
            if name not in (
                "running_sums",
                "generator",
            ):  # emptied by looks; global
                assert torch.equal(found.tensors[name], tensor), name


# What steps are given -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 4, 11])
@pytest.mark.parametrize("rows", [1, 3, 256])
def test_the_feed_gives_what_seed_epoch_and_schedule_say(monkeypatch, rows, first):
    """Against a list written down beforehand, from any first step on, over refills and epochs."""
    monkeypatch.setattr("grokscope.engine.feed.ROWS", rows)
    orders = [Order(23, 5, seed) for seed in (3, 4)]
    augmentation = CropAndFlip(2, True)
    rates = [lambda step: 0.1 / step, lambda step: float(step)]
    feed = Feed(
        orders, rates, (first - 1, 40), torch.device("cpu"), augmentations=[augmentation] * 2
    )
    epochs = [
        [batch for epoch in range(9) for batch in epoch_order(23, seed, epoch).split(5)]
        for seed in (3, 4)
    ]
    drawn: list[Tensor] = []
    for step in range(first, 41):
        expected = [batches[step - 1] for batches in epochs]
        assert all(map(torch.equal, feed.prepare(step), expected))
        row = feed.next(len(expected[0]))
        assert torch.equal(row.examples, torch.stack(expected))
        assert row.rate.tolist() == [0.1 / step, float(step)]
        assert int(row.step) == step
        assert row.drawn is not None and row.drawn.shape == (2, len(expected[0]), 3)
        drawn.append(row.drawn)
    again = Feed(orders, rates, (38, 40), torch.device("cpu"), augmentations=[augmentation] * 2)
    again.prepare(39)
    latest = again.next(len(drawn[-2][0])).drawn
    assert latest is not None and torch.equal(latest, drawn[-2])
