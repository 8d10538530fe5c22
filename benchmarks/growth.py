"""How cost grows: with classes, with samples, with runs at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.timing import Table, race
from grokscope.measures import ClassMoments, ncc, relative_flatness

CLASSES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
WIDTH, EXAMPLES = 128, 512
KAPPA = f"exact kappa of {EXAMPLES} examples"
PICTURE = "growth.svg"


def tables() -> list[Table]:
    """Time of a measure by the size of what it is given."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    streamed = (
        "Up to 256 classes all pairs of rows are compared, above that rows are streamed: no "
        "matrix of classes by classes is held."
    )
    return [
        by_size("kappa by classes", KAPPA, CLASSES, kappa_of, streamed),
        by_size("NCC by classes", "NCC of given moments", CLASSES, ncc_of),
        by_size("moments by samples", "class moments of 100 classes", SAMPLES, moments_of),
    ]


def by_size(
    name: str,
    about: str,
    sizes: Sequence[int],
    case: Callable[[int], Callable[[], object]],
    *notes: str,
) -> Table:
    """Time of one thing by its size; ``case`` prepares it."""
    noun = name.rpartition(" ")[2]
    names = {each: f"{each:,} {noun}" for each in sizes}
    question = f"{about}, width {WIDTH}, by the number of {noun} (one thread)"
    table = Table(name, question, names[sizes[0]], notes=list(notes))
    table.times = race({names[each]: case(each) for each in sizes}, rounds=3, seconds=0.2)
    return table


def kappa_of(classes: int) -> Callable[[], object]:
    features, weight = torch.randn(EXAMPLES, WIDTH), torch.randn(classes, WIDTH) / WIDTH**0.5
    return partial(relative_flatness, features, features @ weight.T, weight)


def ncc_of(classes: int) -> Callable[[], object]:
    labels = torch.arange(2 * classes) % classes
    return partial(ncc, ClassMoments.of(torch.randn(2 * classes, WIDTH), labels, classes))


def moments_of(samples: int) -> Callable[[], object]:
    labels = torch.randint(100, (samples,))
    return partial(ClassMoments.of, torch.randn(samples, WIDTH), labels, 100)


def draw(tables: list[Table], folder: Path) -> None:
    """Time against size, each on logarithmic axes with what linear growth would be."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        ("kappa by classes", "classes", ""),
        ("NCC by classes", "classes", ""),
        ("moments by samples", "samples", ""),
        ("grokking replicas", "runs in one process", "replicas in one process: "),
    ]
    by_name = {table.name: table for table in tables}
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3), layout="constrained")
    for axis, (name, label, only) in zip(axes, panels, strict=True):
        rows = [(size(key), timed) for key, timed in by_name[name].times.items() if only in key]
        sizes = [each for each, _ in rows]
        # Of replicas the step of one run is timed: all of them take as many times that.
        times = [timed.median * (each if only else 1) for each, timed in rows]
        axis.loglog(sizes, times, "o-", color="#0b6e75")
        axis.loglog(
            sizes,
            [times[-1] * each / sizes[-1] for each in sizes],
            ":",
            color="0.6",
            label="linear",
        )
        axis.set(title=name, xlabel=label)
        if only:
            axis.set_xticks(sizes, [str(each) for each in sizes])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds")
    axes[0].legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / PICTURE, metadata={"Date": None})
    plt.close(figure)


def size(name: str) -> int:
    """The number in the name of a contender."""
    return int(re.findall(r"[\d,]+", name)[-1 if ":" in name else 0].replace(",", ""))
