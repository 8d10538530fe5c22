"""Claims that compare arms, on made-up studies in which the truth is known."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from studies import SEEDS, arm, experiment, judged

from grokscope.analysis import ClaimReport, Results, evaluate_claims
from grokscope.analysis.contrasts import comparisons
from grokscope.spec import Contrast


@pytest.mark.parametrize(
    ("id", "ncc", "accuracy", "verdict"),
    [
        ("C3", 5.0, 0.6, "supported"),
        ("C3", 5.0, 0.5, "contradicted"),
        ("C3", 5.0, 0.57, "undecided"),
        ("C3", 0.7, 0.6, "undecided"),  # nothing was suppressed
        ("C4", 0.05, 0.6, "supported"),
        ("C4", 0.05, 0.7, "contradicted"),
        ("C4", 0.4, 0.6, "undecided"),
        ("C4", 5.0, 0.6, "undecided"),
    ],
)
def test_pushing_collapse_is_judged_where_collapse_moved(id, ncc, accuracy, verdict):
    pushed = arm("pushed", train_ncc=ncc, validation_accuracy=accuracy)
    report = judged(arm("baseline"), pushed, contrasts=[Contrast(claim=id, arm="pushed")])
    assert report.headline.verdict == verdict
    assert report.headline.effect == pytest.approx(accuracy - 0.6, abs=0.004)


def test_kappa_is_a_question_of_its_own_in_c3():
    pushed = arm("pushed", train_ncc=5.0, train_relative_flatness=200.0)
    report = judged(arm("baseline"), pushed, contrasts=[Contrast(claim="C3", arm="pushed")])
    kappa = next(each for each in report.findings() if "κ" in each.basis)
    assert report.headline.verdict == "supported"
    assert kappa.verdict == "contradicted"
    assert kappa.effect == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize(
    ("angle", "verdict"), [(20.0, "supported"), (3.0, "contradicted"), (4.0, "contradicted")]
)
def test_angles_leave_the_simplex_by_more_than_five_degrees(angle, verdict):
    pushed = arm("pushed", train_angle_deviation=angle, train_ncc=5.0)
    report = judged(arm("baseline"), pushed, contrasts=[Contrast(claim="C5", arm="pushed")])
    assert report.headline.verdict == verdict
    idle = arm("pushed", train_angle_deviation=angle)  # nothing was suppressed
    report = judged(arm("baseline"), idle, contrasts=[Contrast(claim="C5", arm="pushed")])
    assert report.headline.verdict == "undecided"
    assert report.headline.effect == pytest.approx(angle - 3, abs=0.1)


@pytest.mark.parametrize(
    ("augmented", "verdict"), [(1.0, "supported"), (5.0, "contradicted"), (40.0, "contradicted")]
)
def test_augmentation_is_compared_by_the_ratios_of_ncc(augmented, verdict):
    report = judged(
        arm("baseline"),
        arm("plain", train_ncc=5.0),
        arm("reference", train_ncc=0.5),
        arm("augmented", train_ncc=augmented),
        contrasts=[
            Contrast(claim="C6", arm="plain", role="plain"),
            Contrast(claim="C6", arm="augmented", against="reference", role="augmented"),
        ],
    )
    assert report.headline.verdict == verdict
    assert report.headline.effect == pytest.approx(augmented / 5, rel=0.01)


@pytest.mark.parametrize(
    ("fit", "accuracy", "kappa", "verdict"),
    [
        (1.0, 0.4, 500.0, "supported"),
        (1.0, 0.6, 500.0, "contradicted"),
        (1.0, 0.6, 10.0, "undecided"),  # flatness was not suppressed
        (1.0, 0.4, 10.0, "undecided"),
        (1.0, 0.4, 0.5, "undecided"),  # but encouraged
        (0.5, 0.3, 500.0, "undecided"),  # it does not fit
    ],
)
def test_suppressing_flatness_counts_where_the_network_fits(fit, accuracy, kappa, verdict):
    pushed = arm(
        "pushed", train_accuracy=fit, validation_accuracy=accuracy, train_relative_flatness=kappa
    )
    report = judged(arm("baseline"), pushed, contrasts=[Contrast(claim="C7", arm="pushed")])
    assert report.headline.verdict == verdict


def test_one_seed_that_does_not_fit_spoils_the_fit():
    sharp = {"validation_accuracy": 0.4, "train_relative_flatness": 500.0}
    good = arm("pushed", SEEDS[:4], **sharp)
    bad = arm("pushed", SEEDS[4:], **sharp, train_accuracy=0.9)
    report = judged(arm("baseline"), good, bad, contrasts=[Contrast(claim="C7", arm="pushed")])
    assert report.headline.verdict == "undecided"
    assert "not every seed fits" in report.headline.reason


def test_a_seed_that_is_still_under_way_does_not_spoil_the_fit():
    sharp = {"validation_accuracy": 0.4, "train_relative_flatness": 500.0}
    good = arm("pushed", SEEDS[:4], **sharp)
    late = arm("pushed", SEEDS[4:], **sharp, until=60)
    report = judged(arm("baseline"), good, late, contrasts=[Contrast(claim="C7", arm="pushed")])
    assert report.headline.verdict == "supported"
    assert "seed 5 (unfinished)" in report.headline.reason


def removal(before: float, after: float) -> ClaimReport:
    first = arm("pushed", until=50, validation_accuracy=before)
    second = arm("pushed", validation_accuracy=after)
    both = pd.concat([first, second[second["step"] > 50]])
    return judged(arm("baseline"), both, contrasts=[Contrast(claim="C8", arm="pushed")])


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (0.4, 0.6, "supported"),
        (0.4, 0.7, "supported"),
        (0.4, 0.45, "contradicted"),
        (0.59, 0.6, "undecided"),  # there was nothing to restore
    ],
)
def test_a_removal_restores_what_was_lower_before(before, after, verdict):
    report = removal(before, after)
    assert len(report.findings()) == 1
    assert report.headline.verdict == verdict
    assert report.headline.effect == pytest.approx(after - 0.6, abs=0.004)


PENALTY = {"validation_accuracy": 0.4, "train_relative_flatness": 900.0}
RIVAL = {"validation_accuracy": 0.4, "train_relative_flatness": 10.0}


@pytest.mark.parametrize(
    ("penalty", "rival", "verdict"),
    [
        ({}, {"validation_accuracy": 0.6}, "supported"),
        ({}, {}, "contradicted"),
        ({}, {"validation_accuracy": 0.3}, "contradicted"),
        ({}, {"validation_accuracy": 0.55}, "undecided"),  # lower, but not as much
        ({}, {"train_accuracy": 0.4}, "undecided"),  # the rival does not fit
        ({}, {"train_relative_flatness": 900.0}, "undecided"),  # it sharpens the head, too
        ({"validation_accuracy": 0.6}, {}, "undecided"),  # nothing to explain
        ({"train_accuracy": 0.3}, {"validation_accuracy": 0.6}, "undecided"),
        ({"train_relative_flatness": 10.0}, {"validation_accuracy": 0.6}, "undecided"),
        ({"train_relative_flatness": 1.0}, {"validation_accuracy": 0.6}, "undecided"),
    ],
)
def test_a_rival_that_does_as_much_without_sharpness_speaks_against_flatness(
    penalty, rival, verdict
):
    report = judged(
        arm("baseline"),
        arm("penalty", **PENALTY | penalty),
        arm("gini", **RIVAL | rival),
        contrasts=[
            Contrast(claim="C13", arm="penalty", role="penalty"),
            Contrast(claim="C13", arm="gini", role="rival"),
        ],
    )
    assert report.headline.verdict == verdict
    assert "logit scale" in report.headline.reason


def test_a_counterexample_compares_accuracy_on_the_seeds_that_have_kappa():
    sharp = arm("sharp", train_relative_flatness_matched=100.0)
    low = sharp["seed"].isin([4, 5])
    sharp.loc[low & (sharp["measure"] == "relative_flatness_matched"), "value"] = math.nan
    sharp.loc[low & (sharp["split"] == "validation"), "value"] = 0.1
    contrasts = [Contrast(claim="C14", arm="sharp")]
    report = judged(arm("baseline"), sharp.dropna(), contrasts=contrasts)
    assert report.headline.seeds == 3
    assert "Without kappa at matched loss: seeds 4, 5" in report.headline.reason
    assert (
        "differs by +0.00" in report.headline.reason or "differs by -0.00" in report.headline.reason
    )


@pytest.mark.parametrize(
    ("matched", "accuracy", "fit", "verdict"),
    [
        (100.0, 0.6, 1.0, "contradicted"),
        (100.0, 0.7, 1.0, "contradicted"),
        (100.0, 0.4, 1.0, "supported"),
        (100.0, 0.57, 1.0, "undecided"),
        (20.0, 0.6, 1.0, "undecided"),  # not sharp enough to count
        (100.0, 0.6, 0.9, "undecided"),  # does not fit
    ],
)
def test_a_sharp_network_that_generalises_is_a_counterexample(matched, accuracy, fit, verdict):
    sharp = arm(
        "sharp", validation_accuracy=accuracy, train_relative_flatness_matched=matched,
        train_accuracy=fit,
    )  # fmt: skip
    report = judged(arm("baseline"), sharp, contrasts=[Contrast(claim="C14", arm="sharp")])
    assert report.headline.verdict == verdict
    assert report.headline.effect == pytest.approx(matched / 10, rel=0.01)


def test_sharpness_by_confidence_alone_is_no_counterexample():
    sharp = arm("sharp", train_relative_flatness=1000.0)
    report = judged(arm("baseline"), sharp, contrasts=[Contrast(claim="C14", arm="sharp")])
    assert report.headline.verdict == "undecided"
    (plain,) = report.findings("kappa as it is")
    assert plain.verdict == "contradicted"


def test_the_counterexample_comes_first():
    frames = (
        arm("baseline"),
        arm("a", validation_accuracy=0.4, train_relative_flatness_matched=100.0),
        arm("b", train_relative_flatness_matched=100.0),
    )
    report = judged(*frames, contrasts=[Contrast(claim="C14", arm=each) for each in "ab"])
    assert report.headline.basis == "b"


@pytest.mark.parametrize(
    ("role", "fit", "accuracy", "verdict"),
    [
        ("fails", 0.1, 0.1, "supported"),
        ("fails", 1.0, 0.6, "contradicted"),
        ("lower", 1.0, 0.4, "supported"),
        ("unchanged", 1.0, 0.6, "supported"),
        ("unchanged", 1.0, 0.4, "contradicted"),
        ("unchanged", 1.0, 0.57, "undecided"),
    ],
)
def test_a_sweep_is_held_against_what_the_paper_saw(role, fit, accuracy, verdict):
    own = arm("own", train_accuracy=fit, validation_accuracy=accuracy)
    report = judged(arm("baseline"), own, contrasts=[Contrast(claim="C12", arm="own", role=role)])
    assert report.headline.verdict == verdict


def diverged(name: str, at: int) -> pd.DataFrame:
    frame = arm(name, until=at)
    ends = [(name, seed, at, "train", "diverged", 1.0) for seed in SEEDS]
    return pd.concat([frame, pd.DataFrame(ends, columns=frame.columns)])


def test_runs_that_diverge_have_failed_and_are_named():
    contrasts = [Contrast(claim="C12", arm="own", role="fails")]
    report = judged(arm("baseline"), diverged("own", 60), contrasts=contrasts)
    assert report.headline.verdict == "supported"
    assert "seeds 1, 2, 3, 4, 5 (diverged)" in report.headline.reason


def test_runs_that_are_still_under_way_decide_nothing():
    contrasts = [Contrast(claim="C12", arm="own", role="fails")]
    report = judged(arm("baseline"), arm("own", until=60), contrasts=contrasts)
    assert report.headline.verdict == "undecided"
    assert "No seed has come to the end" in report.headline.reason


def test_one_seed_gives_no_verdict():
    for claim, role in (("C3", ""), ("C5", ""), ("C7", ""), ("C12", "lower"), ("C14", "")):
        own = arm("own", SEEDS[:1], validation_accuracy=0.4, train_ncc=9.0,
                  train_relative_flatness_matched=100.0, train_angle_deviation=40.0)  # fmt: skip
        contrasts = [Contrast(claim=claim, arm="own", role=role)]
        report = judged(arm("baseline"), own, contrasts=contrasts)
        assert report.headline.verdict == "undecided", claim


def test_each_arm_is_restored_from_its_own_level_before():
    first, late = arm("a", until=50, validation_accuracy=0.4), arm("a", validation_accuracy=0.6)
    lowered = pd.concat([first, late[late["step"] > 50]])
    contrasts = [Contrast(claim="C8", arm="a"), Contrast(claim="C8", arm="b")]
    report = judged(arm("baseline"), lowered, arm("b"), contrasts=contrasts)
    assert [each.verdict for each in report.findings()] == ["supported", "undecided"]


def test_without_a_phase_before_nothing_was_removed():
    contrasts = [Contrast(claim="C8", arm="own")]
    own = arm("own", validation_accuracy=0.6)
    report = judged(arm("baseline"), own, contrasts=contrasts, phases=(100,))
    assert report.headline.verdict == "undecided"


def test_an_augmented_arm_is_held_against_no_other_plain_one_than_its_own():
    contrasts = [
        Contrast(claim="C6", arm="weak", role="plain"),
        Contrast(claim="C6", arm="weak augmented", against="reference", role="augmented"),
        Contrast(claim="C6", arm="strong", role="plain"),
        Contrast(claim="C6", arm="strong augmented", against="reference", role="augmented"),
    ]
    frames = (
        arm("baseline"), arm("reference"), arm("weak", train_ncc=0.5),
        arm("weak augmented", train_ncc=0.5), arm("strong", train_ncc=50.0, until=60),
        arm("strong augmented", train_ncc=0.5),
    )  # fmt: skip
    report = judged(*frames, contrasts=contrasts)
    compared = [each for each in report.findings() if each.seeds]
    assert [each.basis for each in compared] == ["weak augmented against reference"]


def test_a_sweep_that_raises_accuracy_has_not_lowered_it():
    contrasts = [Contrast(claim="C12", arm="own", role="lower")]
    report = judged(arm("baseline"), arm("own", validation_accuracy=0.8), contrasts=contrasts)
    assert report.headline.verdict == "contradicted"
    assert "here it raises validation accuracy" in report.headline.reason


@pytest.mark.parametrize("claim", ["C6", "C12", "C13"])
def test_contrasts_without_their_role_are_told_and_do_not_end_the_report(claim):
    report = judged(arm("baseline"), arm("own"), contrasts=[Contrast(claim=claim, arm="own")])
    assert report.headline.verdict == "undecided"
    assert "role" in report.headline.reason


def test_an_experiment_without_contrasts_says_so():
    (report,) = evaluate_claims(Results.from_metrics(arm("baseline")), ["C7"])
    assert report.headline.verdict == "undecided"
    assert "compares no arms" in report.headline.reason


def test_a_level_is_the_median_of_the_last_fifth_of_its_phase():
    frame = arm("own", (1,), noise=0.0)
    late = (frame["measure"] == "ncc") & (frame["step"].isin([45, 50]))
    frame.loc[late, "value"] = 7.0
    frame.loc[(frame["measure"] == "ncc") & (frame["step"] == 40), "value"] = 1000.0
    declared = experiment(Contrast(claim="C3", arm="own", phase=0), seeds=(1,))
    both = pd.concat([frame, arm("baseline", (1,), noise=0.0)])
    (own,) = comparisons(Results.from_metrics(both, declared), "C3")
    assert own.span == (0, 50)
    assert own.arm_levels("ncc") == {1: 7.0}  # of 1000, 7, 7
    assert own.ratio("ncc").effect == pytest.approx(14.0)


def test_a_seed_counts_where_both_arms_have_it():
    frames = (arm("baseline", (1, 2, 3)), arm("own", (2, 3, 4)))
    declared = experiment(Contrast(claim="C3", arm="own"))
    (own,) = comparisons(Results.from_metrics(pd.concat(frames), declared), "C3")
    assert set(own.pairs) == {2, 3}
    assert [seed for seed, _ in own.difference("accuracy", "validation").per_seed] == [2, 3]
