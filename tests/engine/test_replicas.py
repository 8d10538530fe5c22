"""Replicas trained together, against each of them trained alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.engine.loop import Training
from grokscope.engine.replicas import Replicas, UnlikeError, shape_of
from grokscope.interventions import FrobeniusCap, LogitScaleCap, Penalty, SharpnessAware
from grokscope.spec import Images, Optimizer, Phase, Segment
from grokscope.tasks import Task, build_task
from made_clusters import clusters, of
from small_runs import TASK, run

SGD = Optimizer(name="sgd", lr=0.05, momentum=0.9)
ADAMW = Optimizer(lr=1e-2, weight_decay=0.5, warmup_steps=3)
FLAT = Penalty(measure="relative_flatness", weight=0.01)
PUBLISHED = Penalty(
    measure="relative_flatness_bound", weight=-0.02, temperature=2.0, normalize_features=True
)
DIGITS = Images(source="digits", train_examples=60, validation_examples=40, stem="cifar", width=4)


def double(segment: Segment) -> Task:
    """The segment's task in float64, where rounding is far below what a mistake would show."""
    task = build_task(segment.run.task, segment.run.seeds)
    task.model.double()
    return task


def together(segments: list[Segment], make=double, states=None):
    tasks = [make(each) for each in segments]
    replicas = Replicas(tasks, segments, states or [None] * len(segments))
    ticks: list[list] = [[] for _ in segments]
    for told in replicas.run():
        for place, tick in told.items():
            ticks[place].append(tick)
    return replicas, ticks


def alone(segment: Segment, make=double, state=None):
    training = Training(make(segment), segment, state)
    return training, list(training.run())


def rows_of(ticks) -> list:
    return [row for tick in ticks for row in tick.rows]


def assert_same_rows(own, expected, rtol: float, atol: float) -> None:
    assert [row[:4] for row in own] == [row[:4] for row in expected]
    torch.testing.assert_close(
        torch.tensor([row.value for row in own], dtype=torch.float64),
        torch.tensor([row.value for row in expected], dtype=torch.float64),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
    )


def assert_same_states(own, expected, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    assert (own.step, own.optimizer) == (expected.step, expected.optimizer)
    assert own.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(own.tensors[name], tensor, rtol=rtol, atol=atol, msg=name)


def phase(until: int = 120, **changes: object) -> Phase:
    return Phase(until=until, **({"optimizer": ADAMW} | changes))


def segment(*phases: Phase, seed: int = 1, **changes: object) -> Segment:
    return run(30, phases=phases, **changes).segments(seed)[-1]


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
    for place, each in enumerate(segments):
        training, expected = alone(each)
        assert_same_states(replicas.state(place), training.state())
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


def test_bfloat16_steps_can_be_batched():
    segments = [segment(phase(until=20, precision="bfloat16"), seed=seed) for seed in (1, 2)]

    def single(each: Segment) -> Task:
        return build_task(each.run.task, each.run.seeds)

    replicas, _ = together(segments, single)
    for place, each in enumerate(segments):
        training, _ = alone(each, single)
        assert_same_states(replicas.state(place), training.state(), rtol=0.1, atol=0.02)


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
        assert_same_rows(rows_of(ticks[place]), rows_of(expected), rtol=1e-6, atol=1e-8)


def _batches(task: Task, own: Segment, count: int) -> list[Tensor]:
    training = Training(task, own)
    batches, made = training.batches(), []
    for _ in range(count):
        made.append(next(batches))
        training.step += 1
    return made


# Refusals -----------------------------------------------------------------------------------


def test_shapes_are_equal_where_replicas_may_differ_and_only_there():
    base = segment(phase(penalties=(FLAT,)))
    weighed = FLAT.model_copy(update={"weight": -3.0})
    alike = [
        segment(phase(penalties=(FLAT,)), seed=7),
        segment(phase(penalties=(weighed,))),
        segment(phase(penalties=(FLAT,), optimizer=SGD)),
    ]
    unlike = [
        segment(phase()),
        segment(phase(penalties=(PUBLISHED,))),
        segment(phase(until=121, penalties=(FLAT,))),
        segment(phase(penalties=(FLAT,)), batch_size=9),
        segment(phase(penalties=(FLAT,)), task=TASK.model_copy(update={"modulus": 11})),
        segment(phase(penalties=(FLAT,), label_smoothing=0.1)),
        segment(phase(penalties=(FLAT,), constraints=(FrobeniusCap(cap=1.0),))),
        segment(phase(until=60), phase(penalties=(FLAT,))),
    ]
    assert {shape_of(each) for each in alike} == {shape_of(base)}
    assert len({shape_of(each) for each in [base, *unlike]}) == len(unlike) + 1


@pytest.mark.parametrize(
    "own",
    [
        phase(sharpness_aware=SharpnessAware(radius=0.1)),
        phase(penalties=(Penalty(measure="ncc", weight=0.1, memory=0.9),)),
    ],
)
def test_steps_that_are_not_batched_have_no_shape(own):
    segments = [segment(own, seed=seed) for seed in (1, 2)]
    assert shape_of(segments[0]) is None
    with pytest.raises(UnlikeError, match="train each alone"):
        together(segments)


def test_runs_of_different_shapes_are_refused_by_what_differs():
    with pytest.raises(UnlikeError, match="differ in more"):
        together([segment(phase()), segment(phase(until=121))])
    state = alone(segment(phase(until=10)))[0].state()
    with pytest.raises(UnlikeError, match=r"at \[0, 10\]"):
        together([segment(phase(), seed=1), segment(phase(), seed=2)], states=[state, None])


def custom(seed: int) -> Segment:
    return of(Phase(until=20, optimizer=SGD), seed=seed)


def test_a_model_with_other_parameters_is_refused():
    def made(each: Segment) -> Task:
        width = 8 + each.run.seeds.order
        return clusters(nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 4)).double())

    with pytest.raises(UnlikeError, match="same parameters"):
        together([custom(1), custom(2)], made)


def test_other_numbers_of_examples_are_refused():
    def made(each: Segment) -> Task:
        return clusters(examples=40 + 4 * each.run.seeds.order)

    with pytest.raises(UnlikeError, match=r"\[44, 48\]"):
        together([custom(1), custom(2)], made)


class Dropping(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(functional.dropout(inputs, 0.5, self.training))


class Scaled(nn.Sequential):
    scale = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * super().forward(inputs)


def test_a_model_that_draws_random_numbers_is_refused():
    def made(_: Segment) -> Task:
        return clusters(Dropping(nn.Linear(5, 8), nn.Linear(8, 4)).double())

    with pytest.raises(UnlikeError, match=r"Dropping can't be trained in replicas: .*random"):
        together([custom(1), custom(2)], made)


def test_what_differs_outside_the_parameters_is_noticed():
    def made(each: Segment) -> Task:
        model = Scaled(nn.Linear(5, 8), nn.Linear(8, 4)).double()
        model.scale = float(each.run.seeds.order)
        return clusters(model)

    with pytest.raises(UnlikeError, match="are not those of each alone"):
        together([custom(1), custom(2)], made)


def test_a_refusal_leaves_the_statistics_of_batch_norm_alone():
    def made(_: Segment) -> Task:
        torch.manual_seed(0)
        return clusters(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double())

    segments = [custom(1), custom(2)]
    replicas = Replicas([made(each) for each in segments], segments, [None, None])
    fresh = made(segments[0]).model.state_dict()
    for place in (0, 1):
        own = replicas.state(place).tensors
        assert all(torch.equal(own[f"model/{name}"], value) for name, value in fresh.items())
