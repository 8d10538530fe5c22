"""Tables of operations against arithmetic written out, and the splits made of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from grokscope.spec import ModularArithmetic, Seeds
from grokscope.tasks import build_task
from grokscope.tasks.modular import equations, operation_table

FORMULAS = {
    "addition": lambda a, b, p: (a + b) % p,
    "subtraction": lambda a, b, p: (a - b) % p,
    "multiplication": lambda a, b, p: (a * b) % p,
    "sum_of_squares": lambda a, b, p: (a * a + b * b) % p,
    "quadratic_form": lambda a, b, p: (a * a + a * b + b * b) % p,
    "cubic": lambda a, b, p: (a**3 + a * b) % p,
}


@pytest.mark.parametrize("p", [2, 7, 12, 97, 211])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_table_holds_what_the_formula_says(name, p):
    table = operation_table(name, p)
    assert table.tolist() == [[FORMULAS[name](a, b, p) for b in range(p)] for a in range(p)]


@pytest.mark.parametrize("p", [2, 7, 97])
def test_division_is_undone_by_multiplication_and_undefined_at_zero(p):
    table = operation_table("division", p)
    for a, b in itertools.product(range(p), range(p)):
        c = int(table[a, b])
        assert c == -1 if b == 0 else (c * b % p == a and 0 <= c < p)


def test_composition_in_s5_applies_the_right_permutation_first():
    table = operation_table("s5_composition", 97)
    permutations = list(itertools.permutations(range(5)))
    number = {each: i for i, each in enumerate(permutations)}
    assert table.shape == (120, 120)
    for a, b in itertools.product(range(0, 120, 7), range(120)):
        composed = tuple(permutations[a][permutations[b][i]] for i in range(5))
        assert int(table[a, b]) == number[composed]


def test_s5_is_a_group_and_not_commutative():
    table = operation_table("s5_composition", 97)
    assert all(len(set(row)) == 120 for row in table.tolist())
    assert not torch.equal(table, table.T)


@pytest.mark.parametrize("answers", [1, 2])
def test_an_equation_is_written_token_by_token(answers):
    tokens, labels = equations("subtraction", 5, answers)
    assert tokens.shape == (25, 3 + answers)
    for row, label in zip(tokens.tolist(), labels.tolist(), strict=True):
        a, operator, b, equals, *rest = row
        c = (a - b) % 5
        assert (operator, equals) == (5, 6)
        assert label == [c, 7][:answers]
        assert rest == ([] if answers == 1 else [c])


def test_division_leaves_out_what_is_undefined():
    tokens, _ = equations("division", 7, 1)
    assert len(tokens) == 7 * 6
    assert (tokens[:, 2] != 0).all()
    assert ModularArithmetic(operation="division", modulus=7).equations == 42


def task(settings: ModularArithmetic, **seeds: int):
    return build_task(settings, Seeds(**seeds).resolve(0))


def test_the_splits_share_no_equation_and_lose_none():
    settings = ModularArithmetic(modulus=13, train_fraction=0.4, width=8)
    made = task(settings)
    assert len(made.train) == round(0.4 * 169)
    train, validation = (set(map(tuple, s.inputs.tolist())) for s in (made.train, made.validation))
    assert not train & validation
    assert len(train | validation) == 169


def test_each_seed_moves_its_own_thing():
    settings = ModularArithmetic(modulus=13, width=8)
    plain, other_split = task(settings), task(settings, split=1)
    other_start = task(settings, initialisation=1)

    def weights(made):
        return torch.cat([each.flatten() for each in made.model.parameters()])

    assert torch.equal(weights(plain), weights(other_split))
    assert not torch.equal(plain.train.inputs, other_split.train.inputs)
    assert not torch.equal(weights(plain), weights(other_start))
    assert torch.equal(plain.train.inputs, other_start.train.inputs)


def test_making_a_task_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    task(ModularArithmetic(modulus=13, width=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_vocabulary_can_be_padded_as_in_the_paper():
    made = task(ModularArithmetic(modulus=13, width=8, vocabulary=239))
    assert made.model.head.weight.shape == (239, 8)
