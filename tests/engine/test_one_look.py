"""Penalties, constraints and measures act on the head and the rows that the task's look names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from together import (
    SGD,
    alone,
    assert_same_rows,
    assert_same_states,
    double,
    rows_of,
    segment,
    together,
)
from together import phase as phase_of
from torch import Tensor, nn
from torch.nn import functional

from grokscope.engine.loop import Training
from grokscope.engine.update import Kind, Update
from grokscope.interventions import FrobeniusCap, LogitScaleCap, Penalty
from grokscope.measures import ClassMoments, gini, ncc, relative_flatness
from grokscope.spec import Phase, Segment
from grokscope.tasks import Look, Split, Task
from made_clusters import clusters, of
from single_steps import given
from small_runs import TASK


class TwoHeads(nn.Module):
    """Logits come from ``answer``; ``classifier``, where libraries look first, is an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.answer = nn.Linear(5, 6), nn.Linear(6, 4)
        self.classifier = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.answer(self.body(inputs).tanh())
        self.classifier(logits.detach())
        return logits


def two_heads(head: str | None = "answer") -> Task:
    torch.manual_seed(2)
    return clusters(TwoHeads().double(), look=Look(head=head))


@pytest.mark.parametrize("measure", ["relative_flatness", "relative_flatness_bound", "weight_norm"])
def test_a_penalty_acts_on_the_head_that_is_measured(measure):
    """The gradient of loss and penalty, by hand, with the head that the look names."""
    task = two_heads()
    penalty = Penalty(measure=measure, weight=0.3)
    update = Update(task, Phase(until=5, optimizer=SGD, penalties=(penalty,)))
    batch = torch.arange(12)
    update.backward((0,), *update.examples(given(update, 1, batch)))
    found = [parameter.grad.clone() for parameter in task.model.answer.parameters()]
    assert all(parameter.grad is None for parameter in task.model.classifier.parameters())

    model = two_heads().model
    inputs, labels = task.train.inputs[batch], task.train.labels[batch]
    features, weight = model.body(inputs).tanh(), model.answer.weight
    logits, square = features @ weight.T + model.answer.bias, weight.square().sum()
    probs = logits.softmax(-1)
    lengths = features.square().sum(-1)
    value = {
        "relative_flatness": lambda: relative_flatness(features, logits, weight),
        "relative_flatness_bound": lambda: square * (lengths * (1 - probs.square().sum(-1))).mean(),
        "weight_norm": square.sqrt,
    }[measure]()
    total = functional.cross_entropy(logits, labels) + 0.3 * value
    expected = torch.autograd.grad(total, [weight, model.answer.bias])
    for gradient, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, by_hand)


def test_a_cap_holds_for_the_head_that_is_measured():
    task = two_heads()
    before = task.model.classifier.weight.detach().clone()
    phase = Phase(until=4, optimizer=SGD, constraints=(FrobeniusCap(cap=0.5),))
    rows = [row for tick in Training(task, of(phase)).run() for row in tick.rows]
    norms = [row.value for row in rows if row.measure == "weight_norm" and row.step]
    assert norms and max(norms) <= 0.5 * (1 + 1e-9)
    assert torch.equal(task.model.classifier.weight, before)


def test_a_head_that_the_model_lacks_is_refused_before_the_first_step():
    phase = Phase(until=4, optimizer=SGD, constraints=(FrobeniusCap(cap=0.5),))
    with pytest.raises(ValueError, match="head 'anser'"):
        Training(two_heads("anser"), of(phase))


# Rows -------------------------------------------------------------------------------------------


def two_tokens(interventions: dict[str, object]) -> tuple[Update, Tensor, Tensor]:
    own = segment(phase_of(**interventions))
    task = double(own)
    update = Update(task, own.phase)
    return update, *update.examples(given(update, 1, torch.arange(16)))


@pytest.mark.parametrize("measure", ["gini", "ncc", "relative_flatness"])
def test_penalties_see_the_answers_alone_and_the_loss_both_tokens(measure):
    update, inputs, labels = two_tokens({"penalties": (Penalty(measure=measure, weight=1.0),)})
    assert labels.shape[1] == 2
    outcome = update.outcome(inputs, labels, active=(0,))
    hidden = []
    head = update.task.model.head
    head.register_forward_pre_hook(lambda _, taken: hidden.append(taken[0]))
    logits = update.task.model(inputs)
    features = hidden[0][:, 0]
    expected = {
        "gini": lambda: gini(logits[:, 0]),
        "ncc": lambda: ncc(ClassMoments.from_batch(features, labels[:, 0], len(head.weight))),
        "relative_flatness": lambda: relative_flatness(features, logits[:, 0], head.weight),
    }[measure]()
    torch.testing.assert_close(outcome.values[f"penalty_{measure}"], expected.detach())
    both = functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).detach()
    torch.testing.assert_close(outcome.values["minibatch_loss"], both)
    found, counted = outcome.rows
    torch.testing.assert_close(found, features.detach())
    assert torch.equal(counted, labels[:, 0])


def test_a_cap_on_the_logit_scale_is_that_of_the_answers():
    update, inputs, labels = two_tokens({"constraints": (LogitScaleCap(cap=0.05),)})
    outcome = update.outcome(inputs, labels)
    features, _ = outcome.rows
    update.after(Kind(16, capped=(0,)), features, labels[:, 0])
    logits = update.task.model.head(features)
    assert float(logits.std(-1, correction=0).mean()) == pytest.approx(0.05)


@pytest.mark.parametrize("interventions", [
    {"penalties": (Penalty(measure="relative_flatness", weight=0.01),)},
    {"penalties": (Penalty(measure="ncc", weight=0.01),)},
    {"constraints": (LogitScaleCap(cap=1.0),)},
], ids=str)  # fmt: skip
def test_two_tokens_under_interventions_are_the_same_alone_and_in_replicas(interventions):
    segments = [segment(phase_of(until=30, **interventions), seed=seed) for seed in (1, 2)]
    replicas, ticks = together(segments)
    states = [replicas.state(place) for place in (0, 1)]
    for place, each in enumerate(segments):
        training, expected = alone(each)
        assert_same_states(states[place], training.state())
        assert_same_rows(rows_of(ticks[place]), rows_of(expected), rtol=1e-6, atol=1e-8)


def test_a_batch_whose_answers_are_all_of_one_class_has_no_ncc():
    """Its second tokens are of another: they are not measured, so they do not count."""
    update, _, _ = two_tokens({"penalties": (Penalty(measure="ncc", weight=0.01),)})
    answers = update.task.train.labels[:, 0]
    of_one = (answers == answers[0]).nonzero().squeeze(-1)
    assert len(of_one) > 1
    assert update.kind(1, torch.arange(16)).active == (0,)
    assert update.kind(1, of_one).active == ()


class EachPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Embedding(6, 5), nn.Linear(5, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens))


def ignoring(_: Segment) -> Task:
    """Some positions have no label."""
    torch.manual_seed(0)
    tokens = torch.randint(6, (40, 3))
    labels = torch.where(torch.rand(40, 3) < 0.3, -100, (tokens + 1) % 6)
    labels[:, 0] = (tokens[:, 0] + 1) % 6
    split = Split(tokens, labels)
    return Task(EachPosition().double(), split, split)


def test_labels_of_minus_100_count_for_no_penalty():
    task = ignoring(of(Phase(until=3, optimizer=SGD)))
    penalties = tuple(Penalty(measure=name, weight=0.1) for name in ("ncc", "gini"))
    update = Update(task, Phase(until=3, optimizer=SGD, penalties=penalties))
    inputs, labels = update.examples(given(update, 1, torch.arange(20)))
    outcome = update.outcome(inputs, labels, active=(0, 1))
    counted = labels != -100
    assert not bool(counted.all())
    features = task.model.body(inputs)[counted]
    moments = ClassMoments.from_batch(features, labels[counted], 6)
    torch.testing.assert_close(outcome.values["penalty_ncc"], ncc(moments).detach())
    entropy = gini(task.model.head(features)).detach()
    torch.testing.assert_close(outcome.values["penalty_gini"], entropy)
    _, labels = outcome.rows
    assert bool((labels >= 0).all())
    # A position without a label makes no second class.
    answers = [set(row.tolist()) - {-100} for row in task.train.labels]
    for number in (1, 0):  # the class of an example by itself
        single = [place for place, row in enumerate(answers) if row == {number}]
        holey = [place for place in single if -100 in task.train.labels[place]]
        assert holey and update.kind(1, torch.tensor(holey)).active == (1,)
    assert update.kind(1, torch.arange(20)).active == (0, 1)


def test_a_look_may_choose_rows_and_count_fewer_than_the_loss():
    """The last position alone is measured; all are learnt."""

    def last(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return features[:, -1], logits[:, -1], labels[:, -1]

    task = ignoring(of(Phase(until=3, optimizer=SGD)))
    task = replace(task, look=Look(head="head", rows=last))
    measured = task.look(task.model, task.train)
    counted = task.train.labels[:, -1] != -100
    assert measured.examples == int(counted.sum())
    with torch.no_grad():
        logits = task.model(task.train.inputs)[:, -1][counted]
    loss = functional.cross_entropy(logits, task.train.labels[:, -1][counted])
    assert measured["loss"] == pytest.approx(float(loss), rel=1e-12)


def test_a_selector_that_chooses_unlike_rows_is_refused():
    def unlike(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return features[:, 0], logits[:, 0], labels[:, :2]

    task = ignoring(of(Phase(until=3, optimizer=SGD)))
    with pytest.raises(ValueError, match="choose the same rows of each"):
        Look(rows=unlike)(task.model, task.train)


def test_training_on_both_tokens_does_not_depend_on_the_look():
    """Bit for bit: without interventions the look only observes."""
    own = segment(phase_of(until=20), task=TASK)
    states = []
    for look in (None, Look(head="head", batch_size=5)):
        task = double(own)
        task = task if look is None else replace(task, look=look)
        training = Training(task, own)
        list(training.run())
        states.append(training.state())
    assert_same_states(*states, rtol=0, atol=0)


def test_a_look_whose_head_is_a_number_is_refused_with_the_argument_that_was_meant():
    with pytest.raises(
        ValueError, match=r"head must be the name of a layer, got 256; .*batch_size="
    ):
        Look(256)
