"""The answer says in plain sentences what was found, and no more."""

from __future__ import annotations

import math
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import row
from made_arms import LAST, PHASES, REMOVAL, SEEDS, arms_study, naive_level
from made_study import claims, study

from grokscope.analysis.claims import ClaimReport, Finding
from grokscope.analysis.statistics import geometric_ratio, paired_difference
from grokscope.report import Study, write_report
from grokscope.report.answer import Sentence, answer
from grokscope.report.tables import arms_table, compared
from grokscope.report.words import interval, number, share, signed, times


def of(whole: Study) -> list[Sentence]:
    return answer(whole, compared(whole.measured) if whole.measured else [])


def test_claims_are_told_in_words_and_their_numbers_stand_behind() -> None:
    first, second, third = of(study())
    reports = claims()
    assert [each.text for each in (first, second, third)] == [each.statement for each in reports]
    assert [each.verdict for each in (first, second, third)] == [
        "supported", "contradicted", "undecided",
    ]  # fmt: skip
    assert first.aside == "Claim C1, three seeds."
    assert second.aside == "Claim C2, three seeds. By one other measure it is supported."


def test_an_undecided_claim_says_why_where_that_is_known() -> None:
    report = claims()[2]
    for why, wanted in (("not tested", "do not put it to the test"), ("", "")):
        headline = replace(report.headline, why=why)
        (sentence,) = of(study(claims=[replace(report, headline=headline)]))
        assert wanted in sentence.aside
        assert ("test" in sentence.aside) == bool(wanted)


def test_what_rests_on_no_seed_is_no_other_measure() -> None:
    report = claims()[1]
    others = tuple(replace(each, seeds=0) for each in report.others)
    (sentence,) = of(study(claims=[replace(report, others=others)]))
    assert sentence.aside == "Claim C2, three seeds."


@pytest.mark.parametrize(
    ("why", "hint"),
    [("there is no file tight.py", " Run the report from the folder that holds its code."),
     ("its test failed (KeyError: 'x')", "")],
)  # fmt: skip
def test_a_claim_that_could_not_be_judged_is_not_called_undecided(
    why: str, hint: str, tmp_path: Path
) -> None:
    lost = Finding(basis="", verdict="undecided", reason=f"Not judged: {why}.", why="not tested")
    report = ClaimReport(claim="t", title="Tight", statement="It is tight.", headline=lost)
    whole = study((1,), claims=[report], figures=())
    assert of(whole) == [Sentence(f"The claim Tight was not judged: {why}.{hint}")]
    page = unescape(write_report(whole, tmp_path).read_text("utf-8"))
    assert page.count(why) == 1


def test_a_claim_that_compares_arms_speaks_of_comparisons() -> None:
    report = replace(claims()[1], compares=True)
    (sentence,) = of(study(claims=[report]))
    assert sentence.aside.endswith("In one other comparison it is supported.")


def paired(whole: Study, arm: str, measure: str, split: str, ratio: bool) -> tuple[str, bool]:
    """What the table of arms says beside a level, computed naively; and whether it differs."""
    start = REMOVAL if len(PHASES.get(arm, "-")) > 1 else 0
    levels = naive_level(whole, arm, measure, split, start, LAST)
    other = naive_level(whole, "baseline", measure, split, start, LAST)
    found = geometric_ratio(levels, other) if ratio else paired_difference(levels, other)
    form, effect = (number, times) if ratio else (signed, signed)
    between = interval(*found.interval, form)
    low, high = found.interval
    same = 1.0 if ratio else 0.0
    return f"{effect(found.effect)} ({between})" if between else effect(found.effect), (
        low > same or high < same
    )


@pytest.mark.parametrize("arm", ["cap 20", "removed", "cap 10, strong"])
def test_the_table_of_arms_holds_final_levels_and_paired_differences(arm: str) -> None:
    whole = arms_study(("baseline", "cap 20", "removed", "cap 10, strong"))
    table = arms_table(compared(whole.arms))
    cells = row(table, arm)
    start = REMOVAL if arm == "removed" else 0
    for heading, measure, split, ratio in (
        ("Accuracy (training)", "accuracy", "train", False),
        ("Accuracy (held out)", "accuracy", "validation", False),
        ("Exact κ (training)", "relative_flatness", "train", True),
        ("Exact κ at matched loss (training)", "relative_flatness_matched", "train", True),
        ("NCC (training)", "ncc", "train", True),
        ("Logit scale (training)", "logit_scale", "train", False),
    ):
        level = float(
            np.median(list(naive_level(whole, arm, measure, split, start, LAST).values()))
        )
        text = share(level) if measure == "accuracy" else number(level)
        level_shown, change = cells[heading].split("\n")
        assert level_shown == text
        # The reference's level is at the end of its own, longer phase.
        if start == 0:
            assert change == paired(whole, arm, measure, split, ratio)[0]
    assert cells["Seeds"] == str(len(SEEDS))
    assert "\n" not in row(table, "baseline")["Accuracy (held out)"]


def test_without_claims_the_answer_tells_what_differs_by_more_than_the_scatter() -> None:
    whole = arms_study(("baseline", "cap 20"))
    (sentence,) = of(whole)
    change, differs = paired(whole, "cap 20", "relative_flatness", "train", True)
    assert differs
    assert "Compared with baseline, cap 20 differs at the end: the " in sentence.text
    assert f", {change.split(' ')[0]})" in sentence.text
    _, differs = paired(whole, "cap 20", "logit_scale", "train", False)
    assert ("size of the outputs" in sentence.text) == differs


def test_arms_that_do_not_differ_are_said_not_to() -> None:
    def same(frame: pd.DataFrame) -> pd.DataFrame:
        base = frame[frame.arm == "baseline"]
        turned = dict(zip(SEEDS, (*SEEDS[1:], SEEDS[0]), strict=True))
        return pd.concat([base, base.assign(arm="cap 20", seed=base.seed.map(turned))])

    (sentence,) = of(arms_study(("baseline", "cap 20"), change=same))
    assert sentence.text == (
        "Between baseline and cap 20 nothing differs by more than the scatter of the seeds."
    )


def test_an_arm_that_diverged_is_not_called_the_same_as_the_baseline() -> None:
    def diverged(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame[(frame.arm == "baseline") | (frame.step <= 1)]
        last = frame[(frame.arm != "baseline") & (frame.step == 1) & (frame.measure == "loss")]
        return pd.concat([frame, last.assign(split="train", measure="diverged", value=1.0)])

    whole = arms_study(("baseline", "cap 20"), change=diverged)
    (sentence,) = of(whole)
    assert sentence.text == (
        "Nothing is compared between baseline and cap 20: cap 20 diverged in 3 of 3 seeds, so it "
        "has no final level."
    )
    table = arms_table(compared(whole.arms))
    assert [row(table, arm)["Seeds"] for arm in ("baseline", "cap 20")] == ["3", "0"]


def test_runs_with_too_few_looks_are_not_called_the_same() -> None:
    (sentence,) = of(arms_study(("baseline", "cap 20"), change=lambda f: f[f.step % 600 == 0]))
    assert sentence.text == (
        "Nothing is compared between baseline and cap 20: cap 20 has no final level (seeds 1, 42 "
        "and 15213: 1 look in the last fifth of the phase, where 3 are needed)."
    )


def test_effects_without_intervals_are_not_said_to_lie_within_the_scatter() -> None:
    def one_seed_left(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[(frame.arm == "baseline") | (frame.seed == 1) | (frame.step < 100)]

    (sentence,) = of(arms_study(("baseline", "cap 20"), change=one_seed_left))
    assert sentence.text == "What sets cap 20 apart from baseline cannot be told from so few seeds."


def test_one_seed_has_no_intervals_and_says_so() -> None:
    (sentence,) = of(arms_study(("baseline", "cap 20"), (1,)))
    assert sentence.text.startswith("With one seed there are no intervals")


def test_many_arms_are_counted_in_one_sentence() -> None:
    arms = ("baseline", *(f"cap {place}" for place in range(21, 30)))
    (sentence,) = of(arms_study(arms))
    assert sentence.text.startswith("Compared with baseline, of 9 arms: ")
    assert "sharpness of the last layer (exact κ) is higher in 9" in sentence.text


def test_a_single_arm_says_where_it_ended_and_of_how_many_seeds_generalised() -> None:
    def lost(frame: pd.DataFrame) -> pd.DataFrame:
        low = (frame.measure == "accuracy") & (frame.split == "validation") & (frame.seed == 1)
        frame.loc[low, "value"] = 0.2
        return frame

    end, generalised = of(study(claims=(), change=lost))
    assert end.text.startswith("At the end: training accuracy 1.000 and held-out accuracy ")
    assert generalised.text.startswith("2 of 3 seeds generalised (held-out accuracy 0.95 for good)")
    _, never = of(study((1,), lost, claims=()))
    assert never.text == "No seed reached a held-out accuracy of 0.95 for good."


def test_a_run_with_too_few_looks_claims_nothing() -> None:
    few = study((1,), lambda frame: frame[frame.step.isin([0, 50, 4000])], claims=())
    assert of(few)[0].text == "The runs have too few looks at their end to say where they stand."
    assert math.isnan(few.arms[0].level("accuracy"))
