"""Stratified subsets: the quota of each class is exact, and nothing is lost or doubled."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import data, integers, lists

from grokscope.tasks.image_data import stratified


def drawn(labels: list[int], count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    taken, left = stratified(torch.tensor(labels), count, generator)
    return taken.tolist(), left.tolist()


def quotas(labels: list[int], count: int) -> dict[int, int]:
    """Largest remainders in exact fractions; of equal ones the lower class goes first."""
    shares = {each: Fraction(count * labels.count(each), len(labels)) for each in set(labels)}
    whole = {each: int(share) for each, share in shares.items()}
    by_remainder = sorted(shares, key=lambda each: (whole[each] - shares[each], each))
    for each in by_remainder[: count - sum(whole.values())]:
        whole[each] += 1
    return whole


@given(labels=lists(integers(0, 5), min_size=1, max_size=60), seed=integers(0, 2**40), more=data())
def test_quotas_are_exact_and_both_parts_are_everything(labels, seed, more):
    count = more.draw(integers(0, len(labels)))
    taken, left = drawn(labels, count, seed)
    assert len(taken) == count
    assert sorted(taken + left) == list(range(len(labels)))
    own = [labels[place] for place in taken]
    assert {each: own.count(each) for each in set(labels)} == quotas(labels, count)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ((100, 100, 100), 30, (10, 10, 10)),
        ((60, 30, 10), 10, (6, 3, 1)),
        ((5, 3, 2), 5, (3, 1, 1)),  # 2.5, 1.5 and 1: of equal remainders the first class
        ((7, 2, 1), 4, (3, 1, 0)),  # 2.8, 0.8 and 0.4
        ((3, 3), 6, (3, 3)),
        ((3, 3), 0, (0, 0)),
    ],
)
def test_quotas_worked_out_by_hand(sizes, count, expected):
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    taken, _ = drawn(labels, count)
    own = [labels[place] for place in taken]
    assert tuple(own.count(number) for number in range(len(sizes))) == expected


def test_a_subset_depends_on_the_generator_alone():
    labels = [number % 10 for number in range(200)]
    torch.manual_seed(1)
    first = drawn(labels, 50, seed=3)
    torch.manual_seed(2)
    assert drawn(labels, 50, seed=3) == first
    assert set(drawn(labels, 50, seed=4)[0]) != set(first[0])


def test_every_example_of_a_class_is_as_likely_and_so_is_every_place():
    labels = [0] * 6 + [1] * 6
    taken = torch.zeros(12)
    placed = torch.zeros(4, 2)
    for seed in range(2_000):
        places, _ = drawn(labels, 4, seed)
        taken[places] += 1
        placed[torch.arange(4), [labels[place] for place in places]] += 1
    # Binomial with p = 1/3 and 1/2: five standard deviations.
    assert float((taken / 2_000 - 1 / 3).abs().max()) < 5 * (2 / 9 / 2_000) ** 0.5
    assert float((placed / 2_000 - 1 / 2).abs().max()) < 5 * (1 / 4 / 2_000) ** 0.5


def test_equal_remainders_go_to_the_lower_class_whatever_floats_make_of_them():
    labels = [0] * 6 + [1] * 3 + [2]  # of 4: 2.4, 1.2 and 0.4, and 2.4 - 2 < 0.4 in floats
    taken, _ = drawn(labels, 4)
    assert sorted(labels[place] for place in taken) == [0, 0, 0, 1]
