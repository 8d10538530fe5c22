"""Measures against loops over samples and the Hessian that autograd gives."""

from __future__ import annotations

import torch

from benchmarks.baselines import kappa_by_hessian, kappa_by_loops, ncc_by_loops
from benchmarks.timing import Table, race
from grokscope.measures import ClassMoments, ncc, relative_flatness


def tables() -> list[Table]:
    """NCC at the size of the grokking task, kappa at that of a ResNet's head."""
    torch.set_num_threads(1)
    return [ncc_table(), kappa_table(), wide_table()]


def ncc_table() -> Table:
    features, labels = torch.randn(4_700, 128), torch.arange(4_700) % 97
    table = Table(
        "ncc", "NCC of 4,700 examples, width 128, 97 classes (one thread)", "loops over samples"
    )
    ours = float(ncc(ClassMoments.from_batch(features, labels, 97)))
    theirs = float(ncc_by_loops(features, labels, 97))
    assert abs(ours / theirs - 1) < 1e-4, (ours, theirs)
    table.times = race(
        {
            table.baseline: lambda: ncc_by_loops(features, labels, 97),
            "grokscope": lambda: ncc(ClassMoments.from_batch(features, labels, 97)),
        },
        rounds=9,
    )
    return table


def kappa_table() -> Table:
    features, weight = torch.randn(512, 512), torch.randn(10, 512) / 20
    labels = torch.arange(512) % 10
    logits = features @ weight.T
    table = Table(
        "kappa",
        "exact kappa of 512 examples, width 512, 10 classes (one thread)",
        "loops over samples",
    )
    ours = float(relative_flatness(features, logits, weight))
    for theirs in (
        float(kappa_by_loops(features, logits, weight)),
        kappa_by_hessian(features, labels, weight),
    ):
        assert abs(ours / theirs - 1) < 1e-4, (ours, theirs)
    table.times = race(
        {
            table.baseline: lambda: kappa_by_loops(features, logits, weight),
            "autograd Hessian": lambda: kappa_by_hessian(features, labels, weight),
            "grokscope": lambda: relative_flatness(features, logits, weight),
        },
        rounds=3,
    )
    return table


def wide_table() -> Table:
    """A language model's head: the textbook form needs one pass, ours two, and keeps its digits."""
    features, weight = torch.randn(64, 768), torch.randn(50_000, 768) / 28
    logits = features @ weight.T
    table = Table(
        "kappa, 50,000 classes",
        "exact kappa of 64 examples, width 768, 50,000 classes (one thread)",
        "textbook form in float32",
    )

    def textbook() -> torch.Tensor:
        probs = logits.softmax(-1)
        second = probs @ weight.square().sum(-1)
        return (features.square().sum(-1) * (second - (probs @ weight).square().sum(-1))).mean()

    table.times = race(
        {
            table.baseline: textbook,
            "grokscope": lambda: relative_flatness(features, logits, weight),
        },
        rounds=3,
    )
    table.notes.append(
        "The textbook form cancels where the softmax is nearly one-hot; ours accumulates in "
        "float64, with temporaries of 8 MiB."
    )
    return table
