"""Claims on contrasts that cannot be decided say which of several reasons it is."""

from __future__ import annotations

import pytest
from studies import SEEDS, arm, judged

from grokscope.spec import Contrast


@pytest.mark.parametrize("claim", ["C3", "C5", "C7", "C14"])
def test_a_run_with_two_looks_in_its_last_fifth_is_not_judged_by_earlier_ones(claim):
    frames = [arm("baseline"), arm("own", validation_accuracy=0.1, train_ncc=50.0)]
    few = [frame[frame["step"].isin([0, 2, 5, 20, 40, 60, 95, 100])] for frame in frames]
    contrasts = [Contrast(claim=claim, arm="own")]
    report = judged(*few, contrasts=contrasts, phases=(100,))
    assert (report.headline.verdict, report.headline.why) == ("undecided", "not tested")
    assert "2 looks in the last fifth of the phase, where 3 are needed" in report.headline.reason
    assert judged(*frames, contrasts=contrasts, phases=(100,)).headline.seeds == 5


@pytest.mark.parametrize(
    ("levels", "seeds", "why"),
    [
        ({"train_relative_flatness": 10.0}, SEEDS, "not tested"),  # it is not sharp
        ({"train_accuracy": 0.5, "train_relative_flatness": 99.0}, SEEDS, "not tested"),
        ({"train_relative_flatness": 99.0}, SEEDS[:1], "underpowered"),
        ({"train_relative_flatness": 99.0, "validation_accuracy": 0.4}, SEEDS, ""),
    ],
)
def test_an_undecided_verdict_says_whether_the_question_was_put_at_all(levels, seeds, why):
    report = judged(
        arm("baseline"), arm("own", seeds, **levels), contrasts=[Contrast(claim="C7", arm="own")]
    )
    assert report.headline.why == why
    assert (report.headline.verdict == "supported") == (not why)
