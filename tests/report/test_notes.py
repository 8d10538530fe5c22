"""What a page asks its readers to keep in mind of runs that are not complete, or not stable."""

from __future__ import annotations

import pytest

from grokscope.engine.observe import Row
from grokscope.report import write_report
from grokscope.report.study import collect
from grokscope.runs.store import Store
from made_store import (
    UNTIL,
    accuracies,
    finish,
    made_experiment,
    made_state,
    stored,
)


def test_runs_that_are_not_whole_are_named(tmp_path):
    asked = made_experiment(1000, UNTIL, seeds=(1, 2, 3, 4), claims=("C1",))
    store = Store(tmp_path)
    store.save_experiment(asked)
    early = [row for row in accuracies() if row.step <= 1000]
    whole, diverged, stopped, _ = (chain for _, _, chain in asked.runs())
    finish(store, whole[0], early)
    finish(store, whole[1], [row for row in accuracies() if row.step > 1000])
    finish(store, diverged[0], early[:40], step=780, diverged=True)
    store.checkpoint(stopped[0], made_state(640), early[:33], 5.0)
    assert collect(store).notes == [
        "grokking, seed 2 diverged at step 780 (features or logits were no longer finite); what "
        "was measured until then is shown.",
        "grokking, seed 2, phase 2 was not run, because a phase before it diverged.",
        "grokking, seed 3 is at step 640 of 1,000; it is shown up to there.",
        "grokking, seeds 3 and 4, phase 2 has not started.",
        "grokking, seed 4 has not started.",
    ]


def test_runs_of_an_arm_that_share_a_fate_are_named_in_one_note(tmp_path):
    asked = made_experiment(1000, UNTIL, seeds=(1, 2, 3, 4))
    store = Store(tmp_path)
    store.save_experiment(asked)
    early = [row for row in accuracies() if row.step <= 300]
    *diverged, _ = (chain for _, _, chain in asked.runs())
    for chain, step in zip(diverged, (1, 5, 5), strict=True):
        finish(store, chain[0], early, step=step, diverged=True)
    assert collect(store).notes == [
        "grokking, seeds 1, 2 and 3 diverged at steps 1 and 5 (features or logits were no longer "
        "finite); what was measured until then is shown.",
        "grokking, seeds 1, 2 and 3, phase 2 was not run, because a phase before it diverged.",
        "grokking, seed 4 has not started.",
        "grokking, seed 4, phase 2 has not started.",
    ]


def lost_again(share: float) -> list[Row]:
    """Accuracies of a run that is lost again at a share of the points after generalising."""
    rows = accuracies()
    after = [
        index for index, row in enumerate(rows) if row.split == "validation" and row.step >= 1500
    ]
    for index in after[5 :: round(1 / share)]:
        rows[index] = rows[index]._replace(value=0.5)
    return rows


def test_a_run_that_loses_what_it_had_is_named_with_the_share(tmp_path):
    rows = {1: accuracies(), 42: lost_again(0.25)}
    (note,) = collect(stored(tmp_path, made_experiment(), rows)).notes
    assert note.startswith("Unstable after generalising: held-out accuracy fell below 0.9 again")
    assert "seed 1 " not in note
    after = [row.value for row in rows[42] if row.split == "validation" and row.step >= 1500]
    share = sum(value < 0.9 for value in after) / len(after)
    assert f"in seed 42 ({share:.0%})." in note


def test_of_several_arms_the_unstable_one_is_named(tmp_path):
    asked = made_experiment(arms=("calm", "wild"), seeds=(1,))
    store = Store(tmp_path)
    store.save_experiment(asked)
    for arm, _, chain in asked.runs():
        finish(store, chain[0], accuracies() if arm == "calm" else lost_again(0.25))
    (note,) = collect(store).notes
    assert "in wild, seed 1 (" in note
    assert "calm" not in note


def test_where_nothing_ran_a_study_and_its_page_say_so(tmp_path):
    store = Store(tmp_path)
    store.save_experiment(made_experiment(claims=("C1", "C2"), figures=("grokking", "onsets")))
    study = collect(store)
    assert not study.measured
    assert not study.claims
    assert study.environment == {}
    assert study.notes == ["grokking, seeds 1 and 42 have not started."]
    page = write_report(study, tmp_path).read_text(encoding="utf-8")
    assert study.notes[0] in page


def test_a_folder_without_a_run_says_how_to_start_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run .* start one with: grokscope run"):
        collect(Store(tmp_path / "nowhere"))
