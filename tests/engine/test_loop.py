"""The training loop against a plain one, and against itself done another way."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from grokscope.engine.feed import epoch_order
from grokscope.engine.loop import Training
from grokscope.spec import Observation, Optimizer, Phase, Segment
from grokscope.tasks import build_task
from small_runs import run, segment


def training(of: Segment, state=None) -> Training:
    return Training(build_task(of.run.task, of.run.seeds), of, state)


def finished(of: Segment, state=None) -> tuple[Training, list]:
    made = training(of, state)
    rows = [row for tick in made.run() for row in tick.rows]
    return made, rows


def same_state(a: Training, b: Training) -> bool:
    first, second = a.state().tensors, b.state().tensors
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def by_hand(of: Segment) -> tuple[dict, list[float]]:
    """The same training in a dozen lines, with the plain optimiser and its own order."""
    task = build_task(of.run.task, of.run.seeds)
    parameters = list(task.model.parameters())
    settings = of.phase.optimizer
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(
            parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=False
        )
    else:
        optimizer = torch.optim.SGD(
            parameters,
            settings.lr,
            settings.momentum,
            weight_decay=settings.weight_decay,
            fused=False,
        )
    losses: list[float] = []
    epoch = 0
    while len(losses) < of.phase.until:
        order = epoch_order(len(task.train), of.run.seeds.order, epoch)
        for start in range(0, len(order), of.run.batch_size):
            if len(losses) == of.phase.until:
                break
            rows = order[start : start + of.run.batch_size]
            logits = task.model(task.train.inputs[rows])
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), task.train.labels[rows].reshape(-1)
            )
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * min(1, (len(losses) + 1) / settings.warmup_steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        epoch += 1
    return dict(task.model.named_parameters()), losses


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_is_what_a_plain_loop_does(name):
    optimizer = Optimizer(name=name, lr=1e-2, weight_decay=0.1, warmup_steps=3)
    of = segment(40, phases=(Phase(until=40, optimizer=optimizer),))
    made, rows = finished(of)
    parameters, losses = by_hand(of)
    for key, value in made.task.model.named_parameters():
        torch.testing.assert_close(value, parameters[key], rtol=1e-4, atol=1e-6)
    running = {row.step: row.value for row in rows if row.measure == "minibatch_loss"}
    before = 0
    for step in sorted(running):
        mean = sum(losses[before:step]) / (step - before)
        assert running[step] == pytest.approx(mean, rel=1e-4)
        before = step
    assert before == 40


@given(examples=integers(1, 300), seed=integers(0, 2**40), epoch=integers(0, 10**6))
def test_every_epoch_sees_every_example_once(examples, seed, epoch):
    order = epoch_order(examples, seed, epoch)
    assert sorted(order.tolist()) == list(range(examples))
    assert torch.equal(order, epoch_order(examples, seed, epoch))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)
    }
    assert len(orders) == 400


def test_the_order_does_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first = epoch_order(50, 3, 4)
    torch.manual_seed(2)
    assert torch.equal(first, epoch_order(50, 3, 4))


def test_measuring_more_often_changes_no_weight():
    rare = segment(30, observation=Observation(per_decade=1, max_gap=30))
    often = segment(30, observation=Observation(per_decade=50, max_gap=1))
    weights = [finished(each)[0].state().tensors for each in (rare, often)]
    for name in weights[0]:
        if name.startswith("model/"):
            assert torch.equal(weights[0][name], weights[1][name])


@settings(max_examples=12, deadline=None)
@given(ticks=integers(0, 20))
def test_a_run_stopped_at_any_tick_continues_as_if_it_had_not_been(ticks):
    of = segment(30)
    whole, rows = finished(of)
    begun, first = training(of), []
    for count, tick in enumerate(begun.run()):
        first += tick.rows
        if count == ticks:
            break
    state = begun.state()
    torch.manual_seed(99)  # another process has another past
    going_on, rest = finished(of, state)
    assert first + rest == rows
    assert same_state(going_on, whole)


def test_two_phases_alike_are_one_long_phase():
    long, rows = finished(segment(30))
    first, early = finished(segment(13))
    second, late = finished(segment(13, 30), first.state())
    for name, tensor in long.state().tensors.items():
        if name != "running_sums":
            assert torch.equal(second.state().tensors[name], tensor), name
    shared = {(row.step, row.split, row.measure): row.value for row in rows}
    for row in early + late:
        key = (row.step, row.split, row.measure)
        if row.measure != "minibatch_loss" and key in shared:
            assert shared[key] == row.value


def test_another_optimiser_starts_without_the_old_one_s_momentum():
    first, _ = finished(segment(10))
    sgd = Phase(until=20, optimizer=Optimizer(name="sgd", lr=1e-2))
    of = segment(10, phases=(*run(10).phases, sgd))
    made = training(of, first.state())
    buffers = made.update.optimizer.state_dict()["state"].values()
    assert all(not bool(held["momentum_buffer"].any()) for held in buffers)
    for _ in made.run():
        pass
    assert made.step == 20


def test_no_measuring_point_is_doubled_and_none_is_missing():
    of = segment(30)
    _, rows = finished(of)
    count = Counter((row.step, row.split, row.measure) for row in rows)
    assert set(count.values()) == {1}
    assert sorted({row.step for row in rows}) == of.run.observation.points(30)


def test_a_run_whose_weights_overflow_ends_there_and_says_so():
    made = training(segment(60, lr=1e30))
    ticks = list(made.run())
    assert ticks[-1].diverged
    assert ticks[-1].step < 60
    assert not any(tick.diverged for tick in ticks[:-1])


def test_a_batch_is_at_most_half_of_the_training_data():
    made = training(segment(4, batch_size=10_000))
    assert made.order.batch_size == -(-len(made.task.train) // 2)
    assert made.order.steps_per_epoch == 2
