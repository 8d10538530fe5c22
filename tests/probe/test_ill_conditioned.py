"""The probe on data of any condition, in one batch and in many: what the functions give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from grokscope.measures import (
    ClassMoments,
    nc1_pinv,
    nc4_agreement,
    ncc,
    neural_collapse,
    relative_flatness,
    relative_flatness_bound,
)
from grokscope.measures.record import Batch, records
from grokscope.probe import Probe, measure_tensors
from grokscope.probe.assembly import Assembly
from grokscope.probe.choice import choose
from grokscope.probe.trees import Block, Heads

EXAMPLES, WIDTH, CLASSES = 300, 12, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


LABELS = torch.arange(EXAMPLES) % 7 % CLASSES
MEANS, NOISE = normal(CLASSES, WIDTH), normal(EXAMPLES, WIDTH, seed=1)
ACROSS = torch.linalg.svd(MEANS - MEANS.mean(dim=0)).Vh[-1]  # no mean differs along it
OUTLIER = torch.where(torch.arange(EXAMPLES) == 3, 1e4, 1.0)[:, None]
CASES = {
    "scatter as large as distances": MEANS[LABELS] + NOISE,
    "near collapse": MEANS[LABELS] + 1e-6 * NOISE,
    "a common offset": 1e3 + MEANS[LABELS] + 0.1 * NOISE,
    "small beside the offset": 1e3 * normal(WIDTH, seed=2) + 1e-2 * (MEANS[LABELS] + 0.1 * NOISE),
    "large scatter across the means": MEANS[LABELS] + NOISE + 1e4 * normal(EXAMPLES, 1) * ACROSS,
    "an outlier": (MEANS[LABELS] + NOISE) * OUTLIER,
    "means close together": 1e-4 * MEANS[LABELS] + NOISE,
    "means on a line": normal(CLASSES, 1)[LABELS] * MEANS[0] + 0.01 * NOISE,
    "one example collapsed onto another": MEANS[LABELS],
}


@pytest.mark.parametrize("scale", [1.0, 200.0])  # of the head: saturated
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_probe_gives_what_the_functions_give_in_float64(case, dtype, scale):
    head = nn.Linear(WIDTH, CLASSES, bias=False).to(dtype)
    with torch.no_grad():
        head.weight.copy_(scale * (MEANS - MEANS.mean(dim=0)) / WIDTH)
        features = case.to(dtype)
        logits = head(features)
    wide, weight = features.double(), head.weight.detach().double()
    moments = ClassMoments.from_batch(wide, LABELS, CLASSES, scatter=True)
    collapse = neural_collapse(moments, weight)
    expected = {
        **{name: value for name, value in collapse.items() if name != "nc1_pinv"},
        "ncc": ncc(moments),
        "relative_flatness": relative_flatness(wide, logits.double(), weight),
        "relative_flatness_bound": relative_flatness_bound(wide, logits.double(), weight),
        "feature_norm": wide.norm(dim=-1).mean(),
        "nc1_pinv": nc1_pinv(wide, LABELS, moments),
        "nc4_agreement": nc4_agreement(wide, logits.double(), moments),
    }
    for size in (EXAMPLES, 70, 1):
        assembly = Assembly(Heads.of(head), choose(None, {}))
        for block in zip(*(t[None].split(size, dim=1) for t in (features, logits, LABELS)),
                         strict=True):  # fmt: skip
            assembly.add(Block(*block))
        (measured,) = assembly.finish()
        found = {name: measured[name] for name in expected}
        rounded = {name: float(value) for name, value in expected.items()}
        assert found == pytest.approx(rounded, rel=1e-9, abs=1e-300, nan_ok=True)


def test_what_is_shared_without_a_gradient_is_what_is_differentiated():
    """NC1 and NC4 take one product at a look and two where a gradient may be asked for."""
    features = CASES["scatter as large as distances"]
    weight = normal(CLASSES, WIDTH, seed=3)
    for name in ("nc1_pinv", "nc4_agreement"):
        values = []
        for tensor in (features, features.clone().requires_grad_()):
            batch = Batch(tensor, features @ weight.mT, LABELS, weight)
            values.append(records()[name].evaluate(batch).double().mean().item())
        assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_means_that_coincide_span_nothing():
    features = torch.ones(6, 3) + torch.tensor([1.0, -1.0]).repeat(3)[:, None]
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    measured = measure_tensors(features, features, labels, nn.Linear(3, 3), measures=["nc1_pinv"])
    assert measured["nc1_pinv"] != measured["nc1_pinv"]


def test_rows_that_count_are_not_kept_with_those_that_do_not():
    """A view of the answer's position would keep all positions in memory."""
    probe = Probe(
        nn.Sequential(nn.Linear(4, 3)), rows=lambda f, z, y: (f[:, -1], z[:, -1], y[:, -1])
    )
    block, _ = probe._blocks((torch.randn(50, 6, 4), torch.randint(3, (50, 6))))
    for tensor in (block.features, block.logits):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
