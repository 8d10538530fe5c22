"""What watches a step finds every fault that it is there to find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from static import (
    OneDevice,
    OtherDeviceError,
    ReadError,
    buffers,
    fused_on_meta,
    no_reads,
    on_meta,
    unmoved,
)
from step_cases import CASES, STEPS
from torch import nn
from torch.func import vmap
from torch.nn import functional

from grokscope.engine.loop import Training

VALUES = torch.arange(6.0).view(2, 3)
MASK = torch.tensor([True, False])
LABELS = torch.tensor([0, 2])
READS: dict[str, Callable[[], object]] = {
    "item": lambda: VALUES.sum().item(),
    "float": lambda: float(VALUES[0, 0]),
    "int": lambda: int(LABELS[0]),
    "complex": lambda: complex(VALUES[0, 0]),
    "bool": lambda: bool(VALUES.isfinite().all()),
    "if": lambda: 1 if VALUES.sum() > 0 else 0,
    "in": lambda: 2.0 in VALUES,
    "an index of a list": lambda: [1, 2, 3][LABELS[0]],
    "a range": lambda: range(LABELS[1]),
    "an f-string": lambda: f"{VALUES[0, 0]:.3f}",
    "tolist": lambda: VALUES.tolist(),
    "numpy": lambda: VALUES.numpy(),
    "asarray": lambda: np.asarray(VALUES),
    "cpu": lambda: VALUES.cpu(),
    "equal": lambda: torch.equal(VALUES, VALUES),
    "allclose": lambda: torch.allclose(VALUES, VALUES),
    "is_nonzero": lambda: torch.is_nonzero(VALUES[0, 1]),
    "nonzero": lambda: VALUES.nonzero(),
    "where": lambda: torch.where(VALUES > 1),
    "masked_select": lambda: VALUES.masked_select(VALUES > 1),
    "a mask": lambda: VALUES[MASK],
    "a mask beside an index": lambda: VALUES[MASK, LABELS[:1]],
    "a mask that a number is written to": lambda: VALUES.clone().__setitem__(MASK, 0.0),
    "a mask that is written to": lambda: VALUES.clone().__setitem__(MASK, torch.ones(1, 3)),
    "unique": lambda: LABELS.unique(),
    "unique_consecutive": lambda: LABELS.unique_consecutive(),
    "bincount": lambda: LABELS.bincount(),
    "repeat_interleave": lambda: LABELS.repeat_interleave(LABELS),
    "svd": lambda: torch.linalg.svd(VALUES),
    "svdvals": lambda: torch.linalg.svdvals(VALUES),
    "the spectral norm": lambda: torch.linalg.matrix_norm(VALUES, ord=2),
    "pinv": lambda: torch.linalg.pinv(VALUES),
    "eigh": lambda: torch.linalg.eigh(VALUES.T @ VALUES),
    "eigvals": lambda: torch.linalg.eigvals(VALUES.T @ VALUES),
    "lstsq": lambda: torch.linalg.lstsq(VALUES, VALUES),
    "matrix_exp": lambda: torch.linalg.matrix_exp(torch.eye(2)),
    "inv": lambda: torch.linalg.inv(torch.eye(2)),
    "a tensor made of numbers": lambda: torch.tensor([1.0, 2.0]),
    "a new tensor made of numbers": lambda: VALUES.new_tensor([1.0]),
    "a parameter's value": lambda: nn.Parameter(torch.ones(1)).item(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_is_named(read):
    read()  # outside it works
    with no_reads(), pytest.raises(ReadError, match=r"^(aten|Tensor)\.\w+"):
        read()
    read()


def test_a_read_in_the_backward_pass_is_found():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return 2 * values

        @staticmethod
        def backward(ctx, grad):
            return grad * float(grad.sum())

    weight = torch.ones(2, requires_grad=True)
    with no_reads(), pytest.raises(ReadError, match="__float__"):
        Reads.apply(weight).sum().backward()


STATIC: dict[str, Callable[[], object]] = {
    "an index": lambda: VALUES[:, LABELS],
    "a slice": lambda: VALUES[0:1, ::2],
    "masked_fill": lambda: VALUES.masked_fill(VALUES > 1, 0.0),
    "where": lambda: torch.where(VALUES > 1, VALUES, 0.0),
    "cross-entropy": lambda: functional.cross_entropy(VALUES, LABELS, label_smoothing=0.1),
    "iterating": lambda: [row.sum() for row in VALUES],
    "full": lambda: torch.full((2,), 0.5),
    "shapes": lambda: (len(VALUES), VALUES.numel(), VALUES.size(0), VALUES.shape[1]),
    "vmap": lambda: vmap(lambda row: row.softmax(-1))(VALUES),
}


@pytest.mark.parametrize("step", STATIC.values(), ids=STATIC)
def test_what_reads_nothing_is_let_through(step):
    with no_reads():
        step()


def test_tensors_that_are_replaced_are_named():
    held = {"mean": torch.zeros(2), "sum": torch.zeros(2)}
    with unmoved(lambda: held):
        held["mean"].copy_(torch.ones(2))
    with pytest.raises(AssertionError, match="moved: mean$"), unmoved(lambda: held):
        held["mean"] = held["mean"] + 1
    with pytest.raises(AssertionError, match="moved: sum$"), unmoved(lambda: held):
        held["sum"].data = torch.zeros(2)
    with pytest.raises(AssertionError, match="moved: new$"), unmoved(lambda: held):
        held["new"] = torch.zeros(2)
    with pytest.raises(AssertionError, match="moved: new$"), unmoved(lambda: held):
        del held["new"]
    with pytest.raises(AssertionError, match="moved: mean$"), unmoved(lambda: held):
        held["mean"].resize_(1, 2)


def test_buffers_are_all_that_lasts():
    training = Training(CASES["images, plain"].task(), CASES["images, plain"].segment)
    assert training.order.batch_size == 8
    training.task.model.train()
    training.advance(1)
    found = buffers(training)
    assert "1.bn1.running_mean" in found and "1.fc.weight" in found and "sums" in found
    momenta = [name for name in found if name.endswith("momentum_buffer")]
    assert len(momenta) == len(list(training.task.model.parameters()))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there: there[torch.tensor([1])],
        lambda there: there * torch.tensor(2.0),
        lambda there: there.copy_(torch.ones(2, 3)),
        lambda there: torch.ones(2).to("meta"),
        lambda there: torch.ones(2) + 1,
    ],
    ids=["an index", "a number", "a copy", "a move", "work of the host"],
)
def test_a_tensor_of_the_host_is_named(mixed):
    there = torch.ones(2, 3, device="meta")
    with OneDevice("meta"), pytest.raises(OtherDeviceError, match=r"on cpu, not on meta"):
        mixed(there)


def test_without_tensors_of_the_host_work_runs_on_meta():
    there = torch.ones(2, 3, device="meta", requires_grad=True)
    with OneDevice("meta"):
        (2 * there).softmax(-1)[:, torch.zeros(1, dtype=torch.long, device="meta")].sum().backward()
    assert there.grad is not None and there.grad.is_meta


def test_a_task_on_meta_has_no_values():
    task = on_meta(CASES["equations, plain"].task())
    held = [*task.model.state_dict().values(), task.train.inputs, task.train.labels]
    assert all(tensor.is_meta for tensor in held)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        task.train.labels.tolist()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {}), (torch.optim.AdamW, {})],
)
@pytest.mark.parametrize("in_tensor", [False, True])
def test_fused_optimisers_step_on_meta_where_that_is_asked_for(kind, settings, in_tensor):
    weight = torch.ones(3, device="meta", requires_grad=True)
    stepped = kind([weight], lr=0.1, fused=True, **settings)
    if in_tensor:  # not before: a new optimiser looks whether its rate is positive
        stepped.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="supported devices"):
        stepped.step()
    with fused_on_meta():
        stepped.step()
        with OneDevice("meta"), no_reads():
            stepped.step()
    with pytest.raises(NotImplementedError, match="_fused_sgd_"):
        torch._fused_sgd_(
            [weight.detach()],
            [weight.grad],
            [],
            lr=0.1,
            weight_decay=0.0,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_ends_an_epoch_with_a_shorter_batch(case):
    training = Training(case.task(), case.segment)
    assert len(training.task.train) % training.order.batch_size
    assert 2 * training.order.steps_per_epoch < STEPS == training.until
