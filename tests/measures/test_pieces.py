"""Features read in float64 piece by piece, in one tensor or in parts: the same numbers."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exact_moments import CASES, assert_equal, exact_moments, normal
from torch import Tensor

from grokscope.measures import moments as moments_module
from grokscope.measures import pieces as module
from grokscope.measures.moments import ClassMoments
from grokscope.measures.pieces import deviations, lengths_of, rows_of

SIZES = [(7,), (1, 6), (3, 3, 1), (2, 0, 5)]


@pytest.fixture(params=[1, 5, 1000])
def little_memory(monkeypatch, request):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", request.param)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("origins", ["none", "one", "several"])
@pytest.mark.usefixtures("little_memory")
def test_deviations_are_exact_in_parts_of_any_size(sizes, watched, origins):
    features = (normal(7, 3) + 100).float()
    parts = [part.requires_grad_(watched) for part in features.clone().split(sizes)]
    means, index = normal(4, 3), torch.tensor([0, 3, 1, 1, 0, 2, 3])
    origin, chosen, expected = {
        "none": (None, None, features.double()),
        "one": (means[2], None, features.double() - means[2]),
        "several": (means, index, features.double() - means[index]),
    }[origins]
    found = [(part, seen.clone()) for part, seen in deviations(parts, origin, chosen)]
    assert torch.equal(torch.cat([seen for _, seen in found]), expected)
    assert [i for part, _ in found for i in range(part.start, part.stop)] == list(range(7))


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_are_found_in_the_part_in_which_they_lie(sizes):
    features, index = normal(7, 3), torch.tensor([6, 0, 3, 3, 1])
    assert torch.equal(rows_of(features.split(sizes), index), features[index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.usefixtures("little_memory")
def test_lengths_are_those_of_float64(dtype):
    features = (normal(2, 7, 3) * 10.0 ** torch.arange(-3, 4)[:, None]).to(dtype)
    expected = [[math.hypot(*row) for row in rows] for rows in features.tolist()]
    expected = torch.tensor(expected, dtype=torch.float64)
    every = lengths_of(features), torch.func.vmap(lengths_of)(features)
    for lengths in every:
        torch.testing.assert_close(lengths, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("labels", "classes", "width"), CASES)
@pytest.mark.usefixtures("little_memory")
def test_moments_of_parts_are_those_of_the_whole(labels, classes, width):
    features, labels = normal(len(labels), width) + 3, torch.tensor(labels)
    truth = exact_moments(features, labels, classes)
    for parts in (features.split(1), features.split(2), [features[:1], features[1:]]):
        assert_equal(ClassMoments.of(parts, labels, classes, scatter=True), truth, atol=1e-24)


@pytest.mark.parametrize(("labels", "classes", "width"), CASES)
@pytest.mark.usefixtures("little_memory")
def test_sums_by_product_as_on_a_gpu_are_the_same(monkeypatch, labels, classes, width):
    """And so are those of many networks at once, and their gradients."""
    features, labels = normal(3, len(labels), width) + 3, torch.tensor(labels)

    def spread(features: Tensor) -> tuple[Tensor, Tensor]:
        moments = ClassMoments.of(features, labels, classes)
        return moments.within.square().sum() + moments.mean.sin().sum(), moments.count

    derived = torch.func.vmap(torch.func.grad_and_value(spread, has_aux=True))
    expected, used = derived(features), []
    monkeypatch.setattr(moments_module, "_by_product", lambda *_: used.append(1) or True)
    truth = exact_moments(features[0], labels, classes)
    assert_equal(ClassMoments.of(features[0], labels, classes, scatter=True), truth, atol=1e-24)
    torch.testing.assert_close(derived(features), expected)
    assert used


def test_a_gpu_adds_up_few_classes_by_product_and_a_cpu_none():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert moments_module._by_product(gpu, 256) and not moments_module._by_product(gpu, 257)
    assert not moments_module._by_product(cpu, 2)


def test_threads_read_in_memory_of_their_own():
    batches = [normal(3000, 40, seed=seed).float() for seed in range(4)]
    expected, ready = [batch.double().norm(dim=-1) for batch in batches], threading.Barrier(4)

    def lengths(i: int) -> Tensor:
        if i < 4:
            ready.wait(10)
        return lengths_of(batches[i % 4])

    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lengths, range(80))):
            torch.testing.assert_close(found, expected[i % 4], rtol=1e-14, atol=0)
