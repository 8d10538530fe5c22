"""How cost grows: with classes, with samples, with runs at once."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from benchmarks.timing import Table, race
from grokscope.measures import ClassMoments, ncc, relative_flatness

CLASSES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
WIDTH, EXAMPLES = 128, 512
PICTURE = "growth.svg"


def tables() -> list[Table]:
    """Time of a measure by the size of what it is given."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return [kappa_by_classes(), ncc_by_classes(), moments_by_samples()]


def kappa_by_classes() -> Table:
    table = Table(
        "kappa by classes",
        f"exact kappa of {EXAMPLES} examples, width {WIDTH}, by the number of classes (one thread)",
        f"{CLASSES[0]:,} classes",
    )
    cases = {}
    for classes in CLASSES:
        features = torch.randn(EXAMPLES, WIDTH)
        weight = torch.randn(classes, WIDTH) / WIDTH**0.5
        arguments = (features, features @ weight.T, weight)
        cases[f"{classes:,} classes"] = lambda own=arguments: relative_flatness(*own)
    table.times = race(cases, rounds=3, seconds=0.2)
    table.notes.append(
        "Up to 256 classes all pairs of rows are compared, above that rows are streamed: no "
        "matrix of classes by classes is held."
    )
    return table


def ncc_by_classes() -> Table:
    table = Table(
        "NCC by classes",
        f"NCC of given moments, width {WIDTH}, by the number of classes (one thread)",
        f"{CLASSES[0]:,} classes",
    )
    cases = {}
    for classes in CLASSES:
        labels = torch.arange(2 * classes) % classes
        moments = ClassMoments.of(torch.randn(2 * classes, WIDTH), labels, classes)
        cases[f"{classes:,} classes"] = lambda own=moments: ncc(own)
    table.times = race(cases, rounds=3, seconds=0.2)
    return table


def moments_by_samples() -> Table:
    table = Table(
        "moments by samples",
        f"class moments of 100 classes, width {WIDTH}, by the number of samples (one thread)",
        f"{SAMPLES[0]:,} samples",
    )
    cases = {}
    for samples in SAMPLES:
        features, labels = torch.randn(samples, WIDTH), torch.randint(100, (samples,))
        cases[f"{samples:,} samples"] = lambda own=(features, labels): ClassMoments.of(*own, 100)
    table.times = race(cases, rounds=3, seconds=0.2)
    return table


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
