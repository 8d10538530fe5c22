"""Rows of a table by a product, which is how a GPU takes them, against plain indexing."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from grokscope.tasks.models.equations import EquationTransformer
from grokscope.tasks.models.rows import TakeRows, take_rows

INDEX = torch.tensor([3, 0, 3, 3, 1])


@pytest.mark.parametrize("shape", [(5, 2), (4, 2, 3)])
def test_rows_and_their_gradients_are_those_of_indexing(shape):
    table = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(INDEX), *shape[1:], dtype=torch.float64)
    found, expected = TakeRows.apply(table, INDEX), table[INDEX]
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((rows * weight).sum(), table)[0] for rows in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert not bool(gradients[0][2].any())  # a row that nobody took


def test_rows_have_second_derivatives():
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda rows: TakeRows.apply(rows, INDEX).sin(), (table,))
    assert gradgradcheck(lambda rows: TakeRows.apply(rows, INDEX).sin(), (table,))


def test_rows_of_many_tables_are_taken_at_once():
    tables = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    indices = torch.stack([INDEX, INDEX.flip(0), 3 - INDEX])
    found = vmap(TakeRows.apply)(tables, indices)
    expected = torch.stack([table[index] for table, index in zip(tables, indices, strict=True)])
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(rows.sin().sum(), tables)[0] for rows in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_model_learns_the_same_by_a_gpu_s_way(monkeypatch):
    model = EquationTransformer(7, 2, 10, 16, heads=2).double()
    tokens = torch.randint(0, 7, (20, 5))
    tokens[:, 1], tokens[:, 3] = 7, 8
    plain = torch.autograd.grad(model(tokens).sin().sum(), list(model.parameters()))
    called = []

    def as_on_a_gpu(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        called.append(index)
        return TakeRows.apply(table, index)

    monkeypatch.setattr("grokscope.tasks.models.equations.take_rows", as_on_a_gpu)
    by_product = torch.autograd.grad(model(tokens).sin().sum(), list(model.parameters()))
    assert len(called) == 4
    for one, other in zip(plain, by_product, strict=True):
        torch.testing.assert_close(one, other)


def test_on_a_cpu_rows_are_indexed():
    table = torch.randn(4, 2, requires_grad=True)
    assert "IndexSelect" in take_rows(table, INDEX).grad_fn.name()
