"""The probe at scale, beside a library for neural collapse where that is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from benchmarks.timing import Table, race
from grokscope.measures import (
    ClassMoments,
    nc1_pinv,
    nc4_agreement,
    ncc,
    neural_collapse,
    relative_flatness,
    relative_flatness_bound,
)
from grokscope.probe import Measurement, Probe, measure_tensors

EXAMPLES, WIDTH, CLASSES = 50_000, 512, 10
BATCH = 1_000
LIBRARY = "neural-collapse"
INSTALL = "pip install git+https://github.com/rhubarbwu/neural-collapse.git"
# What the library measures, and flatness.
SET = (
    "nc1_pinv",
    "nc1_quotient",
    "nc2_equinorm",
    "nc2_equiangularity",
    "nc2_etf_distance",
    "nc3_self_duality",
    "nc4_means",
    "nc4_agreement",
    "ncc",
    "relative_flatness",
    "relative_flatness_bound",
)


@dataclass(frozen=True)
class Stored:
    """Features of a network that is about to collapse, and its head."""

    features: Tensor
    labels: Tensor
    head: nn.Linear

    @classmethod
    def made(cls, examples: int, width: int, classes: int) -> Stored:
        """Noise around class means, cut off below 0, and the head that points to the means."""
        torch.manual_seed(0)
        labels, means = torch.randint(classes, (examples,)), torch.randn(classes, width)
        head = nn.Linear(width, classes, bias=False)  # the library knows no bias
        with torch.no_grad():
            head.weight.copy_((means - means.mean(dim=0)) * 1.5 / width)
        features = (means[labels] + torch.randn(examples, width)).relu_()
        return cls(features, labels, head)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Consecutive examples."""
        return list(zip(self.features.split(size), self.labels.split(size), strict=True))

    def model(self) -> nn.Module:
        """The head alone."""
        return nn.Sequential(self.head)

    @property
    def logits(self) -> Tensor:
        return self.head(self.features).detach()


def tables() -> list[Table]:
    """Fifty thousand examples of width 512 on two threads."""
    torch.set_num_threads(2)
    stored = Stored.made(EXAMPLES, WIDTH, CLASSES)
    table = Table(
        "the probe at scale",
        f"NC1 to NC4, NCC, kappa and its bound of {EXAMPLES:,} examples, width {WIDTH}, {CLASSES} "
        "classes (two threads)",
        "grokscope, functions one by one",
    )
    contenders: dict[str, Callable[[], object]] = {}
    if find_spec("neural_collapse") is None:
        table.notes.append(f"Another library takes part if it is installed: `{INSTALL}`.")
    else:
        table.baseline = f"{LIBRARY}, batches of {BATCH:,}"
        contenders[table.baseline] = partial(library, stored, BATCH)
        contenders[f"{LIBRARY}, all at once"] = partial(library, stored, EXAMPLES)
        table.notes.append(
            f"{LIBRARY} of github.com/rhubarbwu (`{INSTALL}`), used as its README says: three "
            "passes for means, covariances with CDNV, and agreement; then NC1 (both forms), CDNV, "
            "ETF error and duality. It computes in float32 and has no kappa."
        )
    contenders["grokscope, functions one by one"] = partial(functions, stored)
    contenders |= whole(stored)
    table.times = race(contenders, rounds=7, seconds=0.1)
    return [table]


def whole(stored: Stored) -> dict[str, Callable[[], Measurement]]:
    """The set through one call, and everything the probe measures."""
    logits, model = stored.logits, stored.model()
    batches, one = stored.batches(BATCH), stored.batches(len(stored.labels))
    some, every = Probe(model, measures=SET), Probe(model)
    tensors = partial(measure_tensors, stored.features, logits, stored.labels, stored.head)
    return {
        "measure_tensors(measures=...)": partial(tensors, measures=SET),
        f"Probe(measures=...), batches of {BATCH:,}": partial(some.measure, batches),
        "measure_tensors, all measures": tensors,
        "Probe, all measures, one batch": partial(every.measure, one),
        f"Probe, all measures, batches of {BATCH:,}": partial(every.measure, batches),
    }


@torch.no_grad()
def functions(stored: Stored) -> Mapping[str, Tensor]:
    """The set by the functions of `grokscope.measures`, each of which checks its arguments."""
    features, logits, labels = stored.features, stored.logits, stored.labels
    weight = stored.head.weight
    moments = ClassMoments.from_batch(features, labels, len(weight))
    return {
        **neural_collapse(moments, weight),
        "nc1_pinv": nc1_pinv(features, labels, moments),
        "nc4_agreement": nc4_agreement(features, logits, moments),
        "ncc": ncc(moments),
        "relative_flatness": relative_flatness(features, logits, weight),
        "relative_flatness_bound": relative_flatness_bound(features, logits, weight),
    }


def library(stored: Stored, size: int) -> Mapping[str, float]:
    """The library's set, under our names where it is the same quantity."""
    from neural_collapse import accumulate, measure

    weight, batches = stored.head.weight.detach(), stored.batches(size)
    shape = weight.shape
    of_means = accumulate.MeanAccumulator(*shape)
    for features, labels in batches:
        of_means.accumulate(features, labels)
    means, centre = of_means.compute()
    covariance = accumulate.CovarAccumulator(*shape, M=means)
    variance = accumulate.VarNormAccumulator(*shape, M=means)
    for features, labels in batches:
        covariance.accumulate(features, labels, means)
        variance.accumulate(features, labels, means)
    decisions = accumulate.DecAccumulator(*shape, M=means, W=weight)
    for features, labels in batches:
        decisions.accumulate(features, labels, weight, means)
    within = covariance.compute()
    return {
        "nc1_pinv": measure.covariance_ratio(within, means, centre),
        "nc1_quotient": measure.covariance_ratio(within, means, centre, "quotient"),
        "ncc": measure.variability_cdnv(variance.compute()[0], means),
        "nc2_etf_distance": measure.simplex_etf_error(means, centre),
        "nc4_agreement": measure.clf_ncc_agreement(decisions),
        "duality": measure.self_duality_error(weight, means, centre),
    }
