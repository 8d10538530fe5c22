"""C10 against closed forms of exactly collapsed heads."""

from __future__ import annotations

import math

import pytest
from worlds import World, judged

pytest.importorskip("grokscope.measures.theory")

from grokscope.analysis.claims.collapse import CLASSES, GAPS, exact_slack


def closed_slack(classes: int, gap: float, offset: float) -> float:
    """log10(bound / kappa) by hand; the radius cancels.

    kappa = (1 + offset^2) M^2 * lambda^2 M^2 k / (k - 1) * (1 - sum of p^2), and the bound of
    Proposition 5.3 is lambda^2 k^3 M^4 e / (1 + (k - 1) e)^2 with e = exp(-gap).
    """
    k, e = classes, math.exp(-gap)
    # 1 - sum p^2 = 2 p_0 (1 - p_0) + (1 - p_0)^2 - (k - 1) q^2, free of cancellation
    spread = (2 * (k - 1) * e + (k - 1) * (k - 2) * e**2) / (1 + (k - 1) * e) ** 2
    kappa = (1 + offset**2) * k / (k - 1) * spread
    return math.log10(k**3 * e / (1 + (k - 1) * e) ** 2 / kappa)


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("classes", CLASSES)
def test_the_exact_heads_agree_with_the_closed_form(classes, gap, offset):
    assert exact_slack(classes, 2.0, gap, offset) == pytest.approx(
        closed_slack(classes, gap, offset), abs=1e-6
    )


def report(residual: float, kappa: float, bound: float):
    metrics = World(
        falls={
            "train/collapse_residual": (),
            "train/relative_flatness": (),
            "train/collapse_flatness_bound": (),
        },
        seeds=(1, 42),
    ).metrics()
    level = {
        "collapse_residual": residual,
        "relative_flatness": kappa,
        "collapse_flatness_bound": bound,
    }
    for measure, value in level.items():
        metrics.loc[metrics["measure"] == measure, "value"] = value
    (found,) = judged(metrics, ["C10"])
    return found


def test_the_headline_is_of_this_run_and_the_exact_checks_follow():
    made = report(0.5, 1.0, 10.0)
    assert made.headline.basis == "trained networks"
    assert (made.headline.verdict, made.headline.seeds) == ("undecided", 2)
    assert [each.seeds for each in made.others] == [0, 0]
    found = made.others[0]
    assert (found.basis, found.verdict) == ("exact simplex heads", "supported")
    assert found.effect == pytest.approx(min(closed_slack(k, g, 0) for k in CLASSES for g in GAPS))


@pytest.mark.parametrize(
    ("residual", "kappa", "bound", "expected"),
    [
        (0.01, 1.0, 10.0, "supported"),
        (0.01, 10.0, 1.0, "contradicted"),
        (0.5, 1.0, 10.0, "undecided"),
        (0.5, 10.0, 1.0, "undecided"),
    ],
)
def test_trained_networks_speak_only_where_the_assumptions_are_met(
    residual, kappa, bound, expected
):
    found = report(residual, kappa, bound).headline
    assert found.verdict == expected
    assert found.effect == pytest.approx(math.log10(bound / kappa))
    assert ("The assumptions are not met" in found.reason) == (expected == "undecided")
