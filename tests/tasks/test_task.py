"""Splits of trees of tensors, and tasks with the names they had before."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import nn

from grokscope import tasks
from grokscope.tasks import Look, Split, Task

X, Y = torch.arange(24.0).view(8, 3), torch.arange(8) % 2
TREES = {
    "tensor": X,
    "tuple": (X, X[:, 0]),
    "mapping": {"left": X, "right": -X},
    "nested": {"pair": (X, [X + 1]), "mask": X > 3},
    "a mapping of transformers' kind": UserDict(left=X, right=-X),
}


def leaves(tree) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if hasattr(tree, "values") else tree
    return [leaf for value in values for leaf in leaves(value)]


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_split_of_any_tree_is_cut_moved_and_counted_as_its_tensors(tree):
    split = Split(tree, Y)
    assert len(split) == 8
    few = split.first(3)
    assert len(few) == 3 and split.first(99).labels.equal(Y)
    for part, whole in zip(leaves(few.inputs), leaves(tree), strict=True):
        assert torch.equal(part, whole[:3])
    moved = split.to(torch.device("meta"))
    assert all(leaf.is_meta for leaf in [*leaves(moved.inputs), moved.labels])
    assert split.nbytes == sum(leaf.nbytes for leaf in leaves(tree)) + Y.nbytes


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (X[:7], Y, "7 inputs do not match 8 labels"),
        ({"a": X, "b": X[:5]}, Y, "5 and 8 inputs do not match 8 labels"),
        ({}, Y, "no inputs do not match 8 labels"),
        (X[:1], Y[:1], "at least 2 examples"),
    ],
)
def test_inputs_and_labels_must_be_equally_many(inputs, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(inputs, labels)


def test_measure_is_a_deprecated_name_of_the_look():
    split, model, look = Split(X, Y), nn.Linear(3, 2), Look(batch_size=3)
    with pytest.warns(DeprecationWarning, match="called look="):
        task = Task(model, split, split, measure=look)
    assert task.look is look
    with pytest.warns(DeprecationWarning, match=r"Look\(\)"):
        plain = tasks.measure

    def function(model: nn.Module, split: Split, reference):
        return plain(model, split, reference).including(seen=float(len(split)))

    with pytest.warns(DeprecationWarning, match="called look="):
        task = Task(model, split, split, measure=function)
    measured = task.look(task.model, task.train)
    assert measured["seen"] == 8.0
    assert measured["loss"] == pytest.approx(look(model, split)["loss"])  # in other batches


def test_the_former_name_of_the_batch_size_of_a_look_is_understood_with_a_warning():
    with pytest.warns(DeprecationWarning, match="batch_size"):
        assert Look(at_once=7) == Look(batch_size=7)
