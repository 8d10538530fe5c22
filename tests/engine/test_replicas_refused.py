"""What is not trained together, and how that is noticed before any work is done."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from together import (
    FLAT,
    PUBLISHED,
    SGD,
    alone,
    assert_same_states,
    phase,
    segment,
    together,
)
from torch import Tensor, nn
from torch.nn import functional

from grokscope.engine.alike import UnlikeError, shape_of
from grokscope.engine.replicas import Replicas
from grokscope.interventions import FrobeniusCap, Penalty, SharpnessAware
from grokscope.spec import Optimizer, Phase, Segment
from grokscope.tasks import Task
from made_clusters import clusters, of
from small_runs import TASK


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
        phase(precision="bfloat16"),
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

    with pytest.raises(UnlikeError, match="differ from those of each alone"):
        together([custom(1), custom(2)], made)


def test_losses_of_their_own_are_refused():
    """Each may hold what only its own run should see: weights of classes, the model itself."""

    def made(each: Segment) -> Task:
        task = clusters()
        weight = torch.tensor([1.0, 1.0, 1.0, each.run.seeds.order + 1.0]).double()
        own = lambda logits, labels: functional.cross_entropy(logits, labels, weight)  # noqa: E731
        return replace(task, loss=own)

    with pytest.raises(UnlikeError, match="one loss"):
        together([custom(1), custom(2)], made)


OWN_PENALTY = """
def looking(features, logits, labels, weight):
    return logits.square().mean() * len(labels.unique())
"""


def test_a_penalty_that_looks_at_values_is_refused_before_its_first_step(tmp_path):
    (tmp_path / "own.py").write_text(OWN_PENALTY)
    penalty = Penalty(measure=f"{tmp_path / 'own.py'}:looking", weight=0.1, start=10)
    segments = [segment(phase(penalties=(penalty,)), seed=seed) for seed in (1, 2)]
    with pytest.raises(UnlikeError, match="can't be trained in replicas"):
        together(segments)
    assert alone(segments[0])[1][-1].step == 120


class WithUnused(nn.Sequential):
    """As models of libraries have it: a layer that this task does not call."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 3), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in list(self)[1:]:
            inputs = layer(inputs)
        return inputs


def test_a_layer_that_is_not_used_stays_as_it_is():
    def made(_: Segment) -> Task:
        torch.manual_seed(0)
        return clusters(WithUnused().double())

    segments = [custom(1), custom(2)]
    replicas, _ = together(segments, made)
    for place, each in enumerate(segments):
        training, _ = alone(each, made)
        assert_same_states(replicas.state(place), training.state())


def test_a_replica_diverges_at_the_step_at_which_it_does_alone():
    """The bound overflows while what it is given is finite: that is no end yet."""
    bound = Penalty(measure="relative_flatness_bound", weight=1e-30, start=2)
    hot = Optimizer(name="sgd", lr=1e90, momentum=0.0)
    phases = [phase(optimizer=hot, penalties=(bound,)), phase(penalties=(bound,))]
    segments = [segment(each, seed=seed) for each, seed in zip(phases, (1, 2), strict=True)]
    _, ticks = together(segments)
    expected = alone(segments[0])[1]
    assert expected[-1].diverged
    assert [tick.step for tick in ticks[0]] == [tick.step for tick in expected]


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


def test_a_penalty_that_needs_to_know_the_classes_of_a_batch_is_refused_with_that_reason():
    penalty = Penalty(measure="nc1_quotient", weight=0.1)
    segments = [
        of(Phase(until=20, optimizer=SGD, penalties=(penalty,)), seed=seed) for seed in (1, 2)
    ]
    with pytest.raises(UnlikeError, match="needs to know which classes a batch has"):
        together(segments, lambda _: clusters())
    ticks = alone(segments[0], lambda _: clusters())[1]
    assert any(row.measure == "penalty_nc1_quotient" for tick in ticks for row in tick.rows)
