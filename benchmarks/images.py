"""ResNet-18 on 32x32 images: a plain loop with a DataLoader, ours, and what is added to a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import PlainResNet
from benchmarks.timing import Table, Timed, copy_bandwidth, peak_flops, race
from grokscope.engine.loop import Training
from grokscope.engine.memory import saved_bytes
from grokscope.engine.observe import Observer
from grokscope.engine.replicas import Replicas
from grokscope.experiments import find_experiment
from grokscope.interventions import FrobeniusCap, Penalty
from grokscope.interventions.penalties import penalty_value
from grokscope.measures import Batch
from grokscope.spec import Images, Optimizer, Phase, Run, Segment
from grokscope.tasks import Look, Split, Task
from grokscope.tasks.images import MEASURED_AT_ONCE, CropAndFlip, Normalise
from grokscope.tasks.models.resnet import ResNet18

IMAGES, BATCH, PADDING = 4_000, 64, 4
REPLICAS = 2
SGD = Optimizer(name="sgd", lr=0.01, momentum=0.9)


def tables() -> list[Table]:
    """Throughput, and the shares of penalties and of measuring."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return [throughput_table(), penalties_table(), looks_table()]


class PlainImages(Dataset):
    """What a user writes: each image converted, cropped and flipped by itself."""

    def __init__(self, images: Tensor, labels: Tensor, augmented: bool) -> None:
        self.images, self.labels, self.augmented = images, labels, augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = (self.images[index].float() / 255 - 0.5) / 0.5
        if self.augmented:
            image = nn.functional.pad(image, (PADDING,) * 4)
            top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
            image = image[:, top : top + 32, left : left + 32]
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
        return image, self.labels[index]


def data() -> Split:
    return Split(
        torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8),
        torch.randint(10, (IMAGES,)),
    )


def plain_step(split: Split, augmented: bool):
    model = PlainResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(
        PlainImages(split.inputs, split.labels, augmented), batch_size=BATCH, shuffle=True
    )
    batches = forever(loader)

    def step() -> None:
        images, labels = next(batches)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_step(split: Split, augmented: bool = False, **phase: object):
    model = nn.Sequential(Normalise((0.5,), (0.5,)), ResNet18())
    augment = CropAndFlip(PADDING, flip=True) if augmented else None
    task = Task(model, train=split, validation=split, augment=augment)
    return partial(Training(task, segment_of(**phase)).advance, 1)


def segment_of(seed: int = 0, **phase: object) -> Segment:
    """A phase that outlasts the benchmark; the data of its task are those of a split."""
    phases = (Phase(until=10**5, optimizer=SGD, **phase),)
    return Run(task=Images(source="digits"), batch_size=BATCH, phases=phases).segments(seed)[0]


def replicas_step(split: Split, network: Callable[[], nn.Module]) -> Callable[[], object]:
    """A step of several runs at once, under vmap."""
    segments = [segment_of(seed) for seed in range(REPLICAS)]
    tasks = [
        Task(nn.Sequential(Normalise((0.5,), (0.5,)), network()), train=split, validation=split)
        for _ in segments
    ]
    return Replicas(tasks, segments, [None] * REPLICAS).advance


def forever(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def throughput_table() -> Table:
    split = data()
    table = Table(
        "image step",
        "one step of ResNet-18 (7x7 stem) on 64 images of 32x32, data included; of replicas the "
        "step of one (one thread)",
        "plain loop, DataLoader",
    )
    contenders = {
        table.baseline: plain_step(split, augmented=False),
        "grokscope": our_step(split),
        "plain loop, crops and flips": plain_step(split, augmented=True),
        "grokscope, crops and flips": our_step(split, augmented=True),
        f"plain network, {REPLICAS} replicas": replicas_step(split, PlainResNet),
        f"grokscope, {REPLICAS} replicas": replicas_step(split, ResNet18),
    }
    table.times = race(contenders, rounds=5, seconds=1.5)
    for name, timed in table.times.items():
        if name.endswith("replicas"):
            table.times[name] = Timed(*(seconds / REPLICAS for seconds in astuple(timed)))
    rates = {name: BATCH / timed.median for name, timed in table.times.items()}
    work, moved = step_work(split)
    floor, ours = work / peak_flops(), table.times["grokscope"].median
    table.times["floor: FLOPs at peak"] = Timed(floor, floor, floor)
    table.notes.append(
        f"{work / 1e9:.1f} GFLOP a step of ours (convolutions and products, forward and backward, "
        f"counted by PyTorch); at the measured peak they take {floor * 1e3:.0f} ms, ours runs at "
        f"{100 * floor / ours:.0f} % of it. At least {moved / 1e6:.0f} MB are moved: "
        f"{moved / copy_bandwidth() * 1e3:.0f} ms at the speed of a copy. More than 100 % can be: "
        "the peak is that of a matrix product, and convolutions save products."
    )
    table.notes.append(
        "Images a second: " + "; ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + "."
    )
    return table


def step_work(split: Split) -> tuple[float, float]:
    """FLOPs of a step, and bytes that it moves at least.

    Bytes: what autograd saves is written and read once; parameters are read twice and written,
    gradients and momentum written and read.
    """
    model = nn.Sequential(Normalise((0.5,), (0.5,)), ResNet18())
    inputs, labels = split.inputs[:BATCH], split.labels[:BATCH]
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(inputs), labels).backward()
    saved = saved_bytes(lambda: model(inputs))
    parameters = sum(each.nbytes for each in model.parameters())
    return float(counter.get_total_flops()), 2.0 * saved + 7.0 * parameters


def penalties_table() -> Table:
    split = data()
    published = Penalty(
        measure="relative_flatness_bound", weight=-0.01, temperature=2.0, normalize_features=True
    )
    kappa = Penalty(measure="relative_flatness", weight=-1e-3)
    loops = Penalty(measure="benchmarks.baselines:ncc_penalty_by_loops", weight=-1e-3)
    penalties = {
        "NCC": Penalty(measure="ncc", weight=-1e-3),
        "NCC, loops over samples": loops,
        "published flatness": published,
        "exact kappa": kappa,
    }
    table = Table("penalties", "what an intervention adds to that step (one thread)", "none")
    steps = {name: our_step(split, penalties=(each,)) for name, each in penalties.items()}
    capped = our_step(split, penalties=(published,), constraints=(FrobeniusCap(cap=50),))
    steps |= {"published flatness, cap 50": capped}
    table.times = race({"none": our_step(split), **steps}, rounds=7, seconds=1.5)
    none = table.times["none"].median
    shares = [
        f"{name} {100 * (timed.median / none - 1):+.1f} %"
        for name, timed in table.times.items()
        if name != "none"
    ]
    table.notes.append(
        f"Added to a step: {'; '.join(shares)}: differences of large numbers, good to some percent."
    )
    alone = race({name: penalty_alone(each) for name, each in penalties.items()})
    head = race({"head": penalty_alone(None)})["head"].median
    shares = [
        f"{name} {1e3 * (timed.median - head):.2g} ms, {100 * (timed.median - head) / none:.1f} %"
        for name, timed in alone.items()
    ]
    table.notes.append(
        "By themselves, forward and backward on the head's 64 x 512 inputs, in shares of the step: "
        f"{'; '.join(shares)}."
    )
    return table


def penalty_alone(penalty: Penalty | None):
    """Value and gradients of a penalty on what the head of a ResNet-18 sees; None: the head's."""
    inputs, rows = torch.randn(BATCH, 512), torch.randn(10, 512) / 20
    labels = torch.randint(10, (BATCH,))

    def once() -> None:
        features, weight = inputs.clone().requires_grad_(), rows.clone().requires_grad_()
        logits = features @ weight.T
        if penalty is None:
            logits.sum().backward()
        else:
            penalty_value(penalty, Batch(features, logits, labels, weight)).backward()

    return once


def looks_table() -> Table:
    """Measuring as a share of training, at the paper's scale."""
    run = find_experiment("suppress-flatness", "paper").arms["baseline"]
    split = data()
    model = nn.Sequential(Normalise((0.5,), (0.5,)), ResNet18())
    task = Task(model, split, split, look=Look(batch_size=MEASURED_AT_ONCE))
    observer = Observer([task], run.observation)
    gap = run.observation.max_gap
    times = race(
        {"step": our_step(split), "look": lambda: observer.rows(0, 0.0)}, rounds=3, seconds=1.5
    )
    share = times["look"].median / (gap * times["step"].median)
    table = Table("measuring images", "one look at the paper's scale (one thread)", "step", times)
    table.notes.append(
        f"A look at 2 x 2,000 images every {gap:,} steps (two epochs) is {100 * share:.1f} % of "
        "the training time."
    )
    return table
