"""Two real processes measure together what one process measures of the same data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from grokscope.measures.checks import NotFiniteError
from grokscope.probe import Measurement, Probe

Batch = tuple[Tensor, Tensor]
CLASSES, SIZE, WIDTH = 4, 120, 6
SIZES = {  # examples of each batch, of rank 0 and of rank 1
    "even": ([30, 30], [30, 30]),
    "uneven": ([50, 20, 31], [19]),
    "rank 0 has none": ([], [60, 60]),
    "rank 1 has none": ([120], []),
}
BYTES = SIZE * (4 * WIDTH + 4 * CLASSES + 8)  # of float32 features and logits, int64 labels
MEANS = ("accuracy", "loss", "relative_flatness", "margin", "entropy", "feature_norm", "ncc")


def norm(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return features.abs().mean()


def classifier() -> nn.Module:
    torch.manual_seed(3)
    layers = (
        nn.Linear(5, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(WIDTH, 4),
    )
    return nn.Sequential(*layers)


def data(seed: int = 0) -> Batch:
    """Inputs, and labels as the model answers: its loss can be matched. With a seed, others."""
    x = torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = classifier().eval()(x).argmax(dim=-1)
    return x, y.roll(1) if seed else y


def parts(name: str, seed: int = 0) -> tuple[list[Batch], list[Batch]]:
    """The batches of both ranks; one after the other they are the data in order."""
    sizes = SIZES[name]
    pieces = [each.split(sizes[0] + sizes[1]) for each in data(seed)]
    batches = list(zip(*pieces, strict=True))
    return batches[: len(sizes[0])], batches[len(sizes[0]) :]


def probe(memory: int = 2**30, together: bool = True, **settings: Any) -> Probe:
    group = dist.group.WORLD if together else None
    return Probe(classifier(), memory=memory, group=group, **({"extra": {"norm": norm}} | settings))


def trained(observe: bool) -> dict[str, Any]:
    """A DDP training; with observation, `measure` stands before, after and within its steps."""
    model = DistributedDataParallel(classifier())
    loader_data = TensorDataset(*data())
    loader = DataLoader(loader_data, batch_size=15, sampler=DistributedSampler(loader_data))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(10 + dist.get_rank())  # of dropout
    seen = []

    def look() -> None:
        if observe:
            seen.append(Probe(model, group=dist.group.WORLD).measure(loader))

    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            look()
            loss = cross_entropy(model(x), y)
            look()
            optimizer.zero_grad()
            loss.backward()
            look()
            optimizer.step()
    gradients = {name: each.grad for name, each in model.named_parameters()}
    tensors = {**model.state_dict(), **{f"grad {k}": v for k, v in gradients.items()}}
    return {"tensors": copy.deepcopy(tensors), "rng": torch.get_rng_state(), "seen": seen}


def broken() -> Iterator[Batch]:
    yield from parts("even")[0]
    raise OSError("disk gone")


def failures() -> dict[str, Callable[[int], object]]:
    """Calls, by rank, that all processes must refuse."""
    good = parts("even")[0]
    x, y = good[0]
    return {
        "bad label": lambda rank: probe().measure(good if rank == 0 else [*good, (x, y + CLASSES)]),
        "nan": lambda rank: probe().measure(good if rank else [(x / 0, y)]),
        "loader": lambda rank: probe().measure(broken() if rank == 0 else good),
        "no data": lambda rank: probe().measure([]),
        "other extra": lambda rank: probe(extra={f"mine {rank}": norm}).measure(good),
    }


def process(rank: int, folder: Path) -> None:
    """What each of the two processes does; its outcomes are saved."""
    torch.set_num_threads(1)
    where = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=where, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    for name in SIZES:
        found[name] = probe().measure(parts(name)[rank])
        found[f"{name}, streamed"] = probe(BYTES - 1).measure(parts(name)[rank])
        found[f"{name}, held out"] = probe().measure(parts(name, seed=1)[rank], found[name])
    for name, dtype in {"half": torch.bfloat16, "double": torch.float64}.items():
        batches = [(x.to(dtype), y) for x, y in parts("uneven")[rank]]
        found[name] = Probe(classifier().to(dtype), group=dist.group.WORLD).measure(batches)
    found["memory differs"] = probe(BYTES - rank).measure(parts("even")[rank])
    if rank == 0:
        found["alone"] = probe(together=False).measure(parts("even")[0])
    for name, call in failures().items():
        with pytest.raises(Exception) as refusal:
            call(rank)
        found[name] = (type(refusal.value), str(refusal.value))
    some = dist.new_group([1])  # where its rank is 0
    try:
        found["member"] = Probe(classifier(), group=some).measure(parts("even")[0])
    except ValueError as error:
        found["member"] = str(error)
    found["observed"], found["unobserved"] = trained(True), trained(False)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def one_process(
    name: str, seed: int = 0, reference: Measurement | None = None, **settings: Any
) -> Measurement:
    """The same batches: of others a float32 model's features differ in their last digit."""
    batches = [batch for part in parts(name, seed) for batch in part]
    return probe(together=False, **settings).measure(batches, reference)


def assert_equal(found: Measurement, expected: Measurement) -> None:
    assert found.examples == expected.examples
    assert dict(found) == pytest.approx(dict(expected), rel=1e-11, abs=1e-13)
    assert found.left_out == expected.left_out
    assert found.kernel_robustness == pytest.approx(
        expected.kernel_robustness, rel=1e-11, nan_ok=True
    )
    for name in ("count", "mean", "within"):
        own, other = getattr(found.moments, name), getattr(expected.moments, name)
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", SIZES)
def test_two_processes_measure_what_one_measures_of_their_data_rank_after_rank(ranks, name):
    expected = one_process(name)
    assert {"matched_temperature", "feature_robustness", "nc4_agreement", "nc1_pinv"} <= set(
        expected
    )
    for found in ranks:
        assert_equal(found[name], expected)


@pytest.mark.parametrize("name", SIZES)
def test_features_that_do_not_fit_all_together_stream_on_every_process(ranks, name):
    expected = one_process(name, memory=BYTES - 1)
    assert "matched_temperature" in expected.left_out
    for found in ranks:
        assert_equal(found[f"{name}, streamed"], expected)


@pytest.mark.parametrize("name", SIZES)
def test_the_gap_to_held_out_data_is_that_of_one_process(ranks, name):
    expected = one_process(name, seed=1, reference=one_process(name))
    for found in ranks:
        assert_equal(found[f"{name}, held out"], expected)


def test_means_do_not_depend_on_which_process_has_which_example(ranks):
    x, y = data()
    order = torch.randperm(SIZE)
    shuffled = Probe(classifier().double()).measure([(x[order].double(), y[order])])
    for name in MEANS:
        assert ranks[0]["double"][name] == pytest.approx(shuffled[name], rel=1e-11), name


def test_every_process_has_the_same_numbers_bit_for_bit(ranks):
    for name, found in ranks[0].items():
        if isinstance(found, Measurement) and name not in ("alone", "member"):
            assert dict(found) == dict(ranks[1][name]), name


def test_half_precision_features_travel_as_they_are(ranks):
    batches = [(x.bfloat16(), y) for part in parts("uneven") for x, y in part]
    assert_equal(ranks[1]["half"], Probe(classifier().bfloat16()).measure(batches))


def test_the_smallest_memory_decides_for_all_processes(ranks):
    for found in ranks:
        assert_equal(found["memory differs"], one_process("even", memory=BYTES - 1))


def test_without_a_group_a_process_measures_by_itself(ranks):
    assert_equal(ranks[0]["alone"], probe(together=False).measure(parts("even")[0]))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("bad label", ValueError, "on the process of rank 1: batch 3: "),
        ("nan", NotFiniteError, "on the process of rank 0: batch 1: "),
        ("loader", RuntimeError, "on the process of rank 0: disk gone (OSError)"),
        ("no data", ValueError, "there are no batches to measure"),
        ("other extra", ValueError, "the process of rank 1 measures something else"),
    ],
)
def test_an_error_on_one_process_is_raised_on_all_with_its_rank(ranks, name, kind, message):
    for found in ranks:
        assert found[name][0] is kind
        assert found[name][1].startswith(message)


def test_only_members_of_a_group_measure_with_it(ranks):
    assert_equal(ranks[1]["member"], Probe(classifier()).measure(parts("even")[0]))
    assert "not in the group" in ranks[0]["member"]


def test_measuring_within_ddp_training_changes_no_bit_of_it(ranks):
    for found in ranks:
        plain, observed = found["unobserved"], found["observed"]
        assert len(observed["seen"]) == 2 * 4 * 3
        assert all(each.examples == SIZE for each in observed["seen"])
        assert torch.equal(plain["rng"], observed["rng"])
        assert plain["tensors"].keys() == observed["tensors"].keys()
        for name, tensor in plain["tensors"].items():
            assert torch.equal(tensor, observed["tensors"][name]), name


def test_a_share_of_the_data_measured_alone_is_warned_of():
    dataset = TensorDataset(*data())
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
    with pytest.warns(UserWarning, match="one of 2 shares of the data"):
        probe(together=False).measure(DataLoader(dataset, batch_size=30, sampler=sampler))
