"""The tape replays what a graph could, and gives other results where a graph would."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from tape import NotReplayableError, Tape
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

STEPS = 20
OPTIMIZERS = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, {})}


class Small:
    """A network, its fused optimiser and fixed places for a batch and a rate."""

    def __init__(self, optimizer: str, in_tensor: bool, momenta_exist: bool = True) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)
        )
        self.inputs, self.labels = torch.zeros(6, 5), torch.zeros(6, dtype=torch.long)
        self.rate = torch.tensor(0.1, dtype=torch.float64)
        kind, settings = OPTIMIZERS[optimizer]
        lr = self.rate if in_tensor else float(self.rate)
        self.optimizer = kind(self.model.parameters(), lr=lr, fused=True, **settings)
        if momenta_exist:  # a step of none: the first one of SGD makes its buffers
            self.take(0, 0.0)
            self.step()

    def take(self, step: int, rate: float) -> None:
        """Bring the batch and the rate of a step to where the step finds them."""
        generator = torch.Generator().manual_seed(step)
        self.inputs.copy_(torch.randn(6, 5, generator=generator))
        self.labels.copy_(torch.randint(3, (6,), generator=generator))
        self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = rate

    def step(self) -> None:
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.inputs), self.labels).backward()
        self.optimizer.step()

    def state(self) -> list[Tensor]:
        held = self.optimizer.state.values()
        return [*self.model.state_dict().values(), *(t for state in held for t in state.values())]


def constant(_: int) -> float:
    return 0.1


def cosine(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * step / STEPS))


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def trained(rate: Callable[[int], float], **settings: object) -> tuple[list[Tensor], list[Tensor]]:
    """States after 20 steps: all eager, and one step taped that is then replayed."""
    eager, replayed = Small(**settings), Small(**settings)
    for step in range(1, STEPS + 1):
        eager.take(step, rate(step))
        eager.step()
        replayed.take(step, rate(step))
        if step == 1:
            with Tape() as tape:
                replayed.step()
        else:
            tape.replay()
    return eager.state(), replayed.state()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("in_tensor", [False, True])
def test_replayed_steps_equal_eager_ones_to_the_bit(optimizer, in_tensor):
    assert same(*trained(constant, optimizer=optimizer, in_tensor=in_tensor))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_schedule_is_followed_if_its_rate_is_a_tensor(optimizer):
    assert same(*trained(cosine, optimizer=optimizer, in_tensor=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_rate_that_is_a_python_number_is_part_of_the_tape(optimizer):
    assert not same(*trained(cosine, optimizer=optimizer, in_tensor=False))


def test_a_first_step_that_makes_the_momenta_makes_them_again_and_again():
    settings = {"optimizer": "sgd", "in_tensor": True, "momenta_exist": False}
    assert not same(*trained(constant, **settings))


def test_the_tape_sees_forward_backward_and_the_optimiser():
    small = Small("sgd", in_tensor=True)
    small.take(1, 0.1)
    with Tape() as tape:
        small.step()
    names = tape.names
    assert names.count("aten::addmm") == 2
    assert names.count("aten::mm") == 3  # two of weights, one of activations
    assert "aten::native_batch_norm_backward" in names
    assert names[-1] == "aten::_fused_sgd_"
    assert not [name for name in names if name.startswith("profiler")]


# What a step must not depend on.


def replayed(step: Callable[[], None]) -> None:
    """Two steps, the second replayed."""
    with Tape() as tape:
        step()
    tape.replay()


def test_a_tensor_that_a_step_replaces_is_not_found_by_the_next():
    class Memory:
        def __init__(self) -> None:
            self.means = torch.zeros(3)

        def replace(self) -> None:
            self.means = 0.5 * self.means + 1

        def write(self) -> None:
            self.means.copy_(0.5 * self.means + 1)

    replaced, written = Memory(), Memory()
    replayed(replaced.replace)
    replayed(written.write)
    assert replaced.means.tolist() == [1.0] * 3  # eager: 1.5
    assert written.means.tolist() == [1.5] * 3


def test_a_tensor_that_is_given_other_memory_is_left_behind():
    source, target = torch.ones(2), torch.zeros(2)
    with Tape() as tape:
        target.add_(source)
    source.data = torch.full((2,), 5.0)
    tape.replay()
    assert target.tolist() == [2.0, 2.0]


def test_a_branch_is_taken_as_it_was_taped():
    value, sides = torch.zeros(()), iter([1.0, -1.0])
    replayed(lambda: value.add_(1.0) if next(sides) > 0 else value.sub_(1.0))
    assert float(value) == 2.0


def test_uninitialised_memory_has_no_content():
    total = torch.zeros(2)

    with Tape() as tape:
        total.add_(torch.empty(2))
    tape.replay()
    assert total.isnan().all()


def test_uninitialised_memory_may_be_filled():
    total = torch.zeros(2)
    replayed(lambda: total.add_(torch.empty(2).fill_(3.0)))
    assert total.tolist() == [6.0, 6.0]


def test_a_number_for_python_is_refused():
    values = torch.ones(3)
    for read in (lambda: float(values[0]), lambda: values.sum().item(), lambda: bool(values[0])):
        with Tape(), pytest.raises(NotReplayableError, match=r"_local_scalar_dense.*number"):
            read()
    with Tape(), pytest.raises(NotReplayableError, match="equal"):
        torch.equal(values, values)


def test_a_result_of_another_shape_is_refused():
    mask, values = torch.tensor([True, False, True]), torch.arange(3.0)
    with Tape() as tape:
        values[mask]
    mask.fill_(True)
    with pytest.raises(NotReplayableError, match=r"float32 \[2\].*float32 \[3\] now"):
        tape.replay()


# Kinds of operations.


def test_views_and_writes_through_them_are_replayed():
    base = torch.zeros(2, 3)

    def step() -> None:
        row = base[1].view(3)
        row[1:].add_(1.0)
        base.t()[0].copy_(row.flip(0)[:2])  # the last two of the row, reversed

    eager = base.clone()
    step()
    step()
    expected = base.clone()
    base.copy_(eager)
    replayed(step)
    assert torch.equal(base, expected)
    assert expected.tolist() == [[2.0, 0.0, 0.0], [2.0, 2.0, 2.0]]


def test_lists_of_tensors_are_replayed():
    totals = [torch.zeros(2), torch.zeros(3)]

    def step() -> None:
        torch._foreach_add_(totals, 1.0)
        halves = torch._foreach_mul(totals, 0.5)
        torch._foreach_copy_(totals, torch._foreach_add(totals, halves))

    replayed(step)
    assert [total.tolist() for total in totals] == [[3.75] * 2, [3.75] * 3]


def test_results_that_are_written_to_a_given_place_are_replayed():
    source, target, total = torch.ones(3), torch.zeros(3), torch.zeros(3)

    def step() -> None:
        torch.mul(source, 2.0, out=target)
        total.add_(target)
        source.add_(1.0)

    replayed(step)
    assert total.tolist() == [6.0] * 3


def test_random_numbers_are_drawn_anew_as_eager_steps_draw_them():
    generator, total = torch.Generator().manual_seed(4), torch.zeros(3)

    def step() -> None:
        total.add_(torch.rand(3, generator=generator))
        total.add_(functional.dropout(torch.ones(3)))

    torch.manual_seed(5)
    replayed(step)
    found, total = total.clone(), torch.zeros(3)
    generator.manual_seed(4)
    torch.manual_seed(5)
    step()
    step()
    assert torch.equal(found, total)


class Doubled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return 2 * values.square()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return 4 * values * grad


def test_a_gradient_of_our_own_is_replayed():
    weight = torch.ones(3, requires_grad=True)
    rows = []

    def step() -> None:
        (gradient,) = torch.autograd.grad(Doubled.apply(weight).sum(), weight)
        with torch.no_grad():
            weight.sub_(0.1 * gradient)

    for repeat in (replayed, lambda function: (function(), function())):
        with torch.no_grad():
            weight.fill_(1.0)
        repeat(step)
        rows.append(weight.tolist())
    assert rows[0] == rows[1] == pytest.approx([0.36] * 3)


def test_steps_of_several_networks_at_once_are_replayed():
    """Operations of `torch.func.vmap` reach the tape as plain ones over all networks."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(6)
    inputs = torch.zeros(2, 5, 4)

    def start() -> dict[str, Tensor]:
        torch.manual_seed(7)
        return {
            name: torch.randn(2, *tensor.shape).requires_grad_()
            for name, tensor in model.named_parameters()
        }

    def step(stacks: dict[str, Tensor]) -> None:
        def loss(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return Doubled.apply(functional_call(model, tensors, inputs)).softmax(-1)[:, 0].mean()

        total = vmap(loss)(stacks, inputs).sum()
        gradients = torch.autograd.grad(total, list(stacks.values()))
        with torch.no_grad():
            for stack, gradient in zip(stacks.values(), gradients, strict=True):
                stack.sub_(gradient)

    eager, others = start(), start()
    for count in range(5):
        inputs.copy_(torch.randn(2, 5, 4, generator=generator))
        step(eager)
        if count == 0:
            with Tape() as tape:
                step(others)
        else:
            tape.replay()
    assert {"aten::bmm", "aten::tanh", "aten::_softmax_backward_data"} <= set(tape.names)
    assert same(list(eager.values()), list(others.values()))
    assert not same(list(eager.values()), list(start().values()))
