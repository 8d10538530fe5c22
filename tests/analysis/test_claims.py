"""Verdicts in made-up worlds whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from worlds import AT_GENERALISATION, AT_MEMORISATION, MOSTLY_EARLY, NEVER, World, judged

from grokscope.analysis import (
    ClaimReport,
    Results,
    find_claim,
    onset_table,
    partial_correlations,
    plateau_table,
)

KAPPA, BOUND = "train/relative_flatness", "train/relative_flatness_bound"
PUBLISHED, MATCHED = "train/published_flatness", "train/relative_flatness_matched"
NCC, HELD_OUT_NCC = "train/ncc", "validation/ncc"
GAP = "validation/representativeness"
BEFORE_MEMORISING = ((250.0, 1.4, 0.05), (2700.0, 1.2, 0.03))
AFTERWARDS = ((3400.0, 1.0, 0.01),)


def verdict(world: World, id: str) -> ClaimReport:
    (report,) = judged(world.metrics(), [id])
    return report


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (BEFORE_MEMORISING, "supported"),
        (AT_MEMORISATION, "undecided"),
        (((1300.0, 1.0, 0.02),), "undecided"),
        (AFTERWARDS, "contradicted"),
        (NEVER, "undecided"),
    ],
    ids=["before memorising", "as it ends", "on the plateau", "after generalising", "never"],
)
def test_c1_tells_which_comes_first(stages, expected):
    assert verdict(World(falls={NCC: stages}), "C1").headline.verdict == expected


def test_c1_says_that_a_fall_on_the_plateau_is_not_during_memorisation():
    found = verdict(World(falls={NCC: ((1300.0, 1.0, 0.02),)}), "C1").headline
    assert found.interval[0] > 0  # before validation accuracy, and yet
    assert found.verdict == "undecided"
    assert "In 0 of 4 seeds it starts before training accuracy reaches 0.99" in found.reason


def mixed(measure: str, one, ones: int, other, others: int, **more) -> pd.DataFrame:
    """Metrics of runs of which some fall in one way and some in another."""
    worlds = (
        World(falls={measure: one}, seeds=range(1, 1 + ones), **more),
        World(falls={measure: other}, seeds=range(101, 101 + others), **more),
    )
    return pd.concat([each.metrics() for each in worlds if each.seeds], ignore_index=True)


@pytest.mark.parametrize(
    ("id", "measure", "stages"),
    [
        ("C1", NCC, BEFORE_MEMORISING),
        ("C2", KAPPA, AT_GENERALISATION),
        ("C11", GAP, AT_GENERALISATION),
    ],
)
@pytest.mark.parametrize("without", [NEVER, ((700.0, -1.0, 0.05),)], ids=["does not fall", "rises"])
def test_one_usable_run_without_a_fall_is_evidence_against(id, measure, stages, without):
    (clean,) = judged(mixed(measure, stages, 3, without, 0), [id])
    assert clean.headline.verdict == "supported", clean.headline.reason
    (report,) = judged(mixed(measure, stages, 3, without, 1), [id])
    assert report.headline.verdict == "undecided"
    assert "Against the claim, without such a fall: seed 101 (" in report.headline.reason
    assert "Left out" not in report.headline.reason
    assert report.headline.seeds == 3


@pytest.mark.parametrize("noise", [0.03, 0.15])
def test_c2_is_not_supported_by_what_fell_and_came_back_before_generalisation(noise):
    dip = ((720.0, 0.8, 0.02), (1900.0, -0.8, 0.02), (2700.0, 0.8, 0.02))
    found = verdict(World(falls={KAPPA: dip}, noise=noise, spikes=0.05), "C2").headline
    assert found.verdict != "supported", found.reason
    assert not found.effect > 0.4  # by what was left at the end of the plateau alone it would be


def test_a_claim_without_a_fall_does_not_contradict_itself():
    # Falls, and comes back at every other point: there is a level below, but no lasting fall.
    metrics = World(falls={KAPPA: AT_GENERALISATION}, noise=0.02, spikes=0.0).metrics()
    back = (metrics["measure"] == "relative_flatness") & (metrics["step"] % 500 < 250)
    metrics.loc[back & (metrics["step"] > 2700), "value"] = 100.0
    (report,) = judged(metrics, ["C2"])
    assert report.headline.verdict == "undecided"
    assert (
        "No onset of a lasting fall is found in 4 of 4 seeds; its level" in report.headline.reason
    )
    assert "(the change " in report.headline.reason


def test_c1_measures_the_lead_in_decades():
    found = verdict(World(falls={NCC: BEFORE_MEMORISING}, noise=0.01), "C1").headline
    # Both onsets in closed form: a tenth of 2.6 decades, 1.4 of them about 250; and of the way
    # from 0.32 on for validation accuracy.
    fall = math.log10(250) + 0.05 * math.log(0.26 / 1.14)
    rise = math.log10(2700) + 0.025 * math.log(0.1 / 0.9)
    assert found.effect == pytest.approx(rise - fall, abs=0.05)
    assert found.interval[0] <= rise - fall <= found.interval[1]
    assert found.seeds == len(found.per_seed) == 4


@pytest.mark.parametrize("noise", [0.02, 0.1])
@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (AT_GENERALISATION, "supported"),
        (AT_MEMORISATION, "contradicted"),
        (MOSTLY_EARLY, "contradicted"),
        (((700.0, 0.6, 0.03), (2700.0, 0.6, 0.03)), "undecided"),
        (NEVER, "contradicted"),
        (((1300.0, 1.0, 0.02),), "contradicted"),
    ],
    ids=["with generalisation", "with memorisation", "mostly early", "half", "never", "between"],
)
def test_c2_tells_when_flatness_comes(stages, expected, noise):
    report = verdict(World(falls={KAPPA: stages}, noise=noise), "C2")
    assert report.headline.verdict == expected, report.headline.reason


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize(
    ("stages", "wrong"),
    [(AT_GENERALISATION, "contradicted"), (AT_MEMORISATION, "supported")],
)
def test_with_three_seeds_and_much_noise_c2_is_not_turned_upside_down(stages, wrong, draw):
    seeds = range(10 * draw, 10 * draw + 3)
    world = World(falls={KAPPA: stages}, noise=0.25, spikes=0.25, scatter=0.05, seeds=seeds)
    assert verdict(world, "C2").headline.verdict != wrong


@pytest.mark.parametrize(
    ("stages", "share"), [(AT_GENERALISATION, 0.0), (AT_MEMORISATION, 1.0), (MOSTLY_EARLY, 0.75)]
)
def test_c2_measures_the_share_of_the_fall_that_came_before(stages, share):
    found = verdict(World(falls={KAPPA: stages}, noise=0.02, spikes=0.05), "C2").headline
    assert found.effect == pytest.approx(share, abs=0.1)


def test_c2_says_when_the_answer_depends_on_what_is_measured():
    falls = {
        KAPPA: AT_MEMORISATION,
        BOUND: AT_MEMORISATION,
        PUBLISHED: AT_GENERALISATION,
        MATCHED: NEVER,
    }
    report = verdict(World(falls=falls), "C2")
    found = {each.basis: each.verdict for each in (report.headline, *report.others)}
    assert report.headline.basis == "relative_flatness"
    assert found == {
        "relative_flatness": "contradicted",
        "relative_flatness_bound": "contradicted",
        "published_flatness": "supported",
        "relative_flatness_matched": "contradicted",
    }


@pytest.mark.parametrize("spikes", [0.0, 0.1, 0.25])
@pytest.mark.parametrize(
    ("stages", "expected"),
    [(AT_GENERALISATION, "supported"), (AT_MEMORISATION, "contradicted")],
)
def test_spikes_do_not_change_a_verdict(stages, expected, spikes):
    world = World(falls={KAPPA: stages, NCC: BEFORE_MEMORISING}, spikes=spikes)
    assert verdict(world, "C2").headline.verdict == expected
    assert verdict(world, "C1").headline.verdict == "supported"


@pytest.mark.parametrize("id", ["C1", "C2", "C11", "C15"])
def test_a_single_seed_decides_nothing(id):
    falls = {NCC: BEFORE_MEMORISING, KAPPA: AT_GENERALISATION, GAP: AT_GENERALISATION}
    report = verdict(World(falls=falls, seeds=(1,)), id)
    assert {each.verdict for each in (report.headline, *report.others)} == {"undecided"}
    assert report.headline.seeds == 1


@pytest.mark.parametrize(
    ("stages", "expected"),
    [(AT_GENERALISATION, "supported"), (AT_MEMORISATION, "contradicted")],
)
def test_c11_tells_when_representativeness_improves(stages, expected):
    assert verdict(World(falls={GAP: stages}), "C11").headline.verdict == expected


def test_c11_sees_an_improvement_towards_zero_from_either_side():
    metrics = World(falls={GAP: AT_GENERALISATION}).metrics()
    mirrored = metrics.copy()
    mirrored.loc[mirrored["measure"] == "representativeness", "value"] *= -1
    (one,), (other,) = (judged(each, ["C11"]) for each in (metrics, mirrored))
    assert one.headline == other.headline


def test_runs_that_never_generalise_are_named_and_left_out():
    world = World(falls={KAPPA: AT_GENERALISATION}, seeds=(1, 42, 15213))
    lost = replace(world, seeds=(8,), generalises=math.inf)
    metrics = pd.concat([world.metrics(), lost.metrics()])
    (report,) = judged(metrics, ["C2"])
    assert report.headline.seeds == 3
    assert "seed 8 (never generalised)" in report.headline.reason
    assert report.headline.verdict == "supported"


def test_a_world_without_any_generalisation_is_undecided():
    report = verdict(World(falls={KAPPA: AT_MEMORISATION}, generalises=math.inf), "C2")
    assert report.headline.verdict == "undecided"
    assert report.headline.seeds == 0


def test_unstable_runs_are_flagged_and_kept():
    metrics = World(falls={KAPPA: AT_GENERALISATION}, spikes=0.0).metrics()
    lost = (metrics["seed"] == 42) & (metrics["split"] == "validation") & (metrics["step"] > 3200)
    lost &= (metrics["measure"] == "accuracy") & (metrics["step"] % 200 == 0)
    metrics.loc[lost, "value"] = 0.5
    (report,) = judged(metrics, ["C2"])
    assert report.headline.seeds == 4
    stable = plateau_table(Results.from_metrics(metrics)).set_index("seed")["stable_after"]
    assert stable[42] < 0.9
    assert stable[1] == 1


@pytest.mark.parametrize("id", ["C1", "C2", "C11", "C15"])
def test_what_was_not_measured_is_undecided_and_says_so(id):
    report = verdict(World(), id)
    assert report.headline.verdict == "undecided"
    assert report.headline.reason


def test_c15_tells_what_goes_with_validation_accuracy():
    aligned = ((330.0, 1.5, 0.1), (2700.0, 1.0, 0.03))
    report = verdict(World(falls={NCC: aligned, KAPPA: NEVER}, spikes=0.0), "C15")
    found = {each.basis: each for each in report.findings()}
    assert found["ncc"].verdict == "supported"
    assert found["ncc"].effect < -0.8
    assert found["relative_flatness"].verdict == "contradicted"
    assert "final levels over runs" not in report.contexts  # of four runs
    assert report.contexts[0] == "after memorisation"


@pytest.mark.parametrize("runs", [4, 5, 12])  # of fewer than six there is no interval
def test_c15_over_runs_uses_final_levels_of_different_settings(runs):
    frames = []
    for arm in range(runs):
        steps, quality = np.arange(20), (arm + 0.5) / runs
        for split, measure, value in (
            ("validation", "accuracy", quality),
            ("train", "ncc", 1 / quality),
            ("train", "accuracy", 1.0),
        ):
            frames.append(
                pd.DataFrame({"step": steps, "value": value, "split": split, "measure": measure})
                .assign(arm=f"arm {arm}", seed=1)
            )  # fmt: skip
    (report,) = judged(pd.concat(frames), ["C15"])
    found = report.findings("final levels over runs")
    assert [each.basis for each in found] == (["ncc"] if runs == 12 else [])
    assert [each.verdict for each in found] == (["supported"] if runs == 12 else [])
    assert all(each.effect == pytest.approx(-1) for each in found)


def test_partial_correlations_take_away_what_the_loss_explains():
    metrics = World(falls={KAPPA: NEVER}, noise=0.02, spikes=0.0).metrics()
    loss = (metrics["measure"] == "loss") & (metrics["split"] == "train")
    kappa = metrics["measure"] == "relative_flatness"
    rng = np.random.default_rng(0)
    # Kappa is the loss and nothing else; the loss falls over time, as accuracy rises.
    metrics.loc[kappa, "value"] = metrics.loc[loss, "value"].to_numpy() * 10 ** rng.normal(
        0, 0.01, int(kappa.sum())
    )
    table = partial_correlations(Results.from_metrics(metrics)).set_index(
        ["with", "given", "window"]
    )
    raw = table.loc[("validation accuracy", "", "all steps"), "rho"]
    given = table.loc[("validation accuracy", "training loss", "all steps")]
    assert raw < -0.8
    assert abs(given["rho"]) < 0.35
    assert given["low"] < 0 < given["high"]
    assert table.loc[("training loss", "", "plateau"), "rho"] > 0.8


def test_tables_have_the_columns_that_the_report_reads():
    world = World(falls={NCC: BEFORE_MEMORISING, KAPPA: AT_GENERALISATION}, seeds=(1, 42))
    metrics = world.metrics()
    milestones, onsets = (
        plateau_table(Results.from_metrics(metrics)),
        onset_table(Results.from_metrics(metrics)),
    )
    assert list(milestones) == ["arm", "seed", "memorised", "onset", "generalised", "stable_after"]
    assert list(onsets) == ["arm", "measure", "split", "seed", "step", "low", "high"]
    assert (milestones["memorised"] < milestones["onset"]).all()
    assert (milestones["onset"] < milestones["generalised"]).all()
    assert set(onsets["measure"]) == {"memorised", "generalisation", "ncc", "relative_flatness"}
    assert (onsets["low"] <= onsets["step"]).all()
    assert (onsets["step"] <= onsets["high"]).all()


def test_repeated_points_count_once_and_the_last_one_counts():
    metrics = World(falls={KAPPA: AT_GENERALISATION}, seeds=(1, 42)).metrics()
    wrong = metrics.assign(value=metrics["value"] * 3)
    twice = pd.concat([wrong, metrics])
    assert judged(twice, ["C2"]) == judged(metrics, ["C2"])


def test_the_same_metrics_give_the_same_answer_in_any_order():
    metrics = World(falls={KAPPA: AT_GENERALISATION}, seeds=(1, 42)).metrics()
    shuffled = metrics.sample(frac=1, random_state=0)
    assert judged(shuffled, ["C2"]) == judged(metrics, ["C2"])


def test_several_arms_are_not_taken_for_several_seeds():
    metrics = World(falls={KAPPA: AT_GENERALISATION}, seeds=(1, 42)).metrics()
    both = pd.concat([metrics, metrics.assign(arm="other")])
    runs = Results.from_metrics(both).runs
    assert len(runs) == 4
    with pytest.raises(ValueError, match="grokking, other"):
        find_claim("C2")(runs)
    for report in judged(both, ["C1", "C2", "C10", "C11"]):
        assert report.headline.verdict == "undecided"
        assert report.headline.seeds == 0
        assert "there are grokking, other" in report.headline.reason
        assert not report.others
    assert judged(both, ["C2"], arm="other") == judged(metrics, ["C2"])


def test_unknown_arms_and_columns_are_refused():
    metrics = World(seeds=(1,)).metrics()
    with pytest.raises(ValueError, match="no arm 'x'"):
        judged(metrics, ["C1"], arm="x")
    with pytest.raises(ValueError, match="split"):
        judged(metrics.drop(columns="split"), ["C1"])


@pytest.mark.parametrize("until", [-1, 0, 1, 5, 60, 800])
def test_a_run_that_has_only_begun_is_undecided_everywhere(until):
    falls = {NCC: BEFORE_MEMORISING, KAPPA: AT_GENERALISATION, GAP: AT_GENERALISATION}
    metrics = World(falls=falls).metrics()
    metrics = metrics[metrics["step"] <= until]
    for report in judged(metrics, ["C1", "C2", "C11"]):
        assert report.headline.verdict == "undecided"
    assert len(judged(metrics, ["C15"])) == 1
    assert plateau_table(Results.from_metrics(metrics))["generalised"].isna().all()
    assert onset_table(Results.from_metrics(metrics)).shape[1] == 7
    assert partial_correlations(Results.from_metrics(metrics)).shape[1] == 9
