"""From stored segments to a study: milestones, the paper's rows, notes, what is drawn beside."""

from __future__ import annotations

import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_study import MILESTONES, one_seed

from grokscope.analysis import plateau_table
from grokscope.engine.observe import Row
from grokscope.experiments import find_experiment
from grokscope.experiments.grokking import grokking
from grokscope.report import write_report
from grokscope.report.study import check_names, collect
from grokscope.report.tables import milestones_table
from grokscope.runs.store import Store
from grokscope.spec import Contrast, Experiment, Optimizer, PaperValue, Phase, Run
from made_store import (
    ENVIRONMENT,
    MEMORISED,
    POINTS,
    UNTIL,
    accuracies,
    curve,
    finish,
    made_experiment,
    stored,
)

# What is read.


def test_a_study_tells_what_was_stored(tmp_path):
    asked = made_experiment(claims=("C1",), figures=("grokking",))
    both = {seed: one_seed(seed, MILESTONES[seed], UNTIL) for seed in (1, 42)}
    rows = {}
    for seed, frame in both.items():
        rows[seed] = [Row(*each) for each in frame[list(Row._fields)].itertuples(index=False)]
    study = collect(stored(tmp_path, asked, rows))
    written = pd.concat([frame.assign(seed=seed) for seed, frame in both.items()])
    keys = ["seed", "split", "measure", "step"]
    found = {
        (run.seed, split, measure, int(step)): value
        for run in study.results.runs
        for (measure, split), curve in run.curves.items()
        for step, value in zip(*curve, strict=True)
    }
    assert found == written.set_index(keys)["value"].to_dict()
    assert list(study.results.arms) == ["grokking"]
    assert (study.title, study.question) == (asked.title, asked.question)
    assert [each.claim for each in study.claims] == ["C1"]
    assert Experiment.model_validate(study.settings) == asked
    assert study.figures == ("grokking",)
    assert not study.notes


def test_milestones_lie_between_the_points_where_accuracy_jumps(tmp_path):
    at = {1: (300, 1500), 42: (440, 1700)}
    study = collect(stored(tmp_path, made_experiment(), {s: accuracies(*at[s]) for s in at}))
    frame = plateau_table(study.results).set_index("seed")
    for seed, (memorised, generalised) in at.items():
        assert memorised - 20 <= frame.loc[seed, "memorised"] <= memorised
        assert generalised - 20 <= frame.loc[seed, "generalised"] <= generalised
        assert frame.loc[seed, "stable_after"] == 1


def test_the_environment_is_what_all_segments_share_and_the_sum_of_their_time(tmp_path):
    asked = made_experiment()
    store = Store(tmp_path)
    store.save_experiment(asked)
    for (_, seed, (segment,)), version in zip(asked.runs(), ("2.9", "2.10"), strict=True):
        own = {**ENVIRONMENT, "torch": version, "seeds": {"split": seed}, "started": str(seed)}
        finish(store, segment, accuracies(), environment=own)
    assert collect(store).environment == {
        "torch": "2.9 / 2.10",
        "revision": "unknown",
        "segments": 2,
        "seconds of training and measuring": 2.5,
    }


def test_a_segment_that_arms_share_counts_once_in_time_and_for_each_arm_in_metrics(tmp_path):
    shared = Phase(until=UNTIL // 2)
    arms = {
        name: Run(phases=(shared, Phase(until=UNTIL, optimizer=Optimizer(lr=lr))))
        for name, lr in (("one", 0.1), ("other", 0.2))
    }
    asked = made_experiment().model_copy(update={"arms": arms, "seeds": (1,)})
    store = Store(tmp_path)
    store.save_experiment(asked)
    rows = accuracies()
    first = [row for row in rows if row.step <= shared.until]
    for index, (_, _, chain) in enumerate(asked.runs()):
        if index == 0:
            finish(store, chain[0], first)
        finish(store, chain[1], [row for row in rows if row.step > shared.until])
    study = collect(store)
    assert study.environment["segments"] == 3
    points = {
        name: sum(len(curve.steps) for curve in arm.runs[1].curves.values())
        for name, arm in study.results.arms.items()
    }
    assert points == {"one": len(rows), "other": len(rows)}


# Beside the paper.

LEVELS = {1: 40.0, 42: 60.0, 7: 10.0}  # of NCC, by seed


def ncc(level: float) -> list[float]:
    """Twice the level at the start, with spikes, and a third of it in the last fifth."""
    values = [2 * level] + [level] * 79 + [level / 3] * (len(POINTS) - 80)
    values[30] = values[60] = values[61] = 1000.0
    values[-2] = math.nan
    values[-1] = values[-4] = 500.0
    return values


PAPER = (
    ("memorised", MEMORISED),
    ("generalised", "not reached"),
    ("first train/ncc", 2 * statistics.median(LEVELS.values())),
    ("highest train/ncc", None),
    ("last train/ncc", statistics.median(LEVELS.values()) / 3),
    ("last validation/ncc", None),
    ("", None),
)


def test_beside_the_papers_values_stand_medians_over_seeds_of_medians_over_points(tmp_path):
    paper = tuple(PaperValue(what=asked or "else", value="?", measured=asked) for asked, _ in PAPER)
    asked = made_experiment(paper=paper, seeds=tuple(LEVELS))
    rows = {
        seed: [*accuracies(generalised=math.inf), *curve("train", "ncc", ncc(level))]
        for seed, level in LEVELS.items()
    }
    found = collect(stored(tmp_path, asked, rows)).paper
    assert [row[:2] for row in found] == [(row.what, row.value) for row in paper]
    naive: list[Any] = [expected for _, expected in PAPER]
    # A window of five points, less of them at the ends; missing points count for nothing.
    highest = []
    for level in LEVELS.values():
        known = [value for value in ncc(level) if not math.isnan(value)]
        windows = [known[max(0, at - 2) : at + 3] for at in range(len(known))]
        highest.append(max(statistics.median(window) for window in windows))
    naive[3] = statistics.median(highest)
    for (asked, _), expected, (_, _, found_here) in zip(PAPER, naive, found, strict=True):
        if asked == "memorised":
            assert expected - 20 <= float(found_here.replace(",", "")) <= expected
        else:
            assert found_here == (
                pytest.approx(expected) if isinstance(expected, float) else expected
            )


def test_a_spike_is_not_the_highest_level(tmp_path):
    asked = made_experiment(
        paper=(PaperValue(what="w", value="v", measured="highest train/ncc"),), seeds=(1,)
    )
    values = [5.0] * len(POINTS)
    values[10] = values[50] = 1e6
    rows = {1: [*accuracies(), *curve("train", "ncc", values)]}
    assert collect(stored(tmp_path, asked, rows)).paper == [("w", "v", 5.0)]


def test_a_milestone_is_the_same_number_beside_the_papers_and_in_its_table(tmp_path):
    paper = (PaperValue(what="m", value="v", measured="memorised"),)
    asked = made_experiment(paper=paper, seeds=(1,))
    whole = collect(stored(tmp_path, asked, {1: accuracies()}))
    table = milestones_table(whole.measured)
    assert table is not None
    assert whole.paper == [("m", "v", table.rows[0][1])]


def test_a_claim_that_is_named_twice_is_shown_once(tmp_path):
    asked = made_experiment(seeds=(1,), claims=("C1", "C2", "C1"))
    shown = collect(stored(tmp_path, asked, {1: accuracies()})).claims
    assert [report.claim for report in shown] == ["C1", "C2"]


# Beside.


def test_the_papers_setting_is_labelled_as_grokscopes_run_once_something_was_measured(tmp_path):
    store = stored(tmp_path / "run", made_experiment(seeds=(1,)), {1: accuracies()})
    beside = Store(tmp_path / "another")
    asked = made_experiment(seeds=(1,), preset="paper")
    beside.save_experiment(asked)
    assert collect(store).counterpart is None
    assert collect(store, beside).counterpart is None
    stored(beside.folder, asked, {1: accuracies(200, 900)})
    shown = collect(store, beside).counterpart
    assert shown is not None
    assert shown.title == "grokscope's run in the paper's setting"
    (run,) = shown.results.runs
    assert 180 <= run.memorised.step <= 200


def test_another_preset_beside_is_called_by_its_preset(tmp_path):
    store = stored(tmp_path / "run", made_experiment(seeds=(1,)), {1: accuracies()})
    asked = made_experiment(seeds=(1,), preset="two-tokens")
    other = stored(tmp_path / "other", asked, {1: accuracies()})
    shown = collect(store, other).counterpart
    assert shown is not None
    assert shown.title == "a second run (preset two-tokens)"


# Figures.


def test_without_names_of_figures_those_that_suit_the_runs_are_drawn(tmp_path):
    grokking = stored(tmp_path / "groks", made_experiment(seeds=(1,)), {1: accuracies()})
    assert collect(grokking).figures[0] == "grokking"
    never = stored(
        tmp_path / "never", made_experiment(seeds=(1,)), {1: accuracies(generalised=math.inf)}
    )
    assert collect(never).figures[0] == "accuracies"
    both = stored(
        tmp_path / "both", made_experiment(arms=("one", "other"), seeds=(1,)), {1: accuracies()}
    )
    assert collect(both).figures == (
        "outcomes", "accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm",
    )  # fmt: skip


def test_outcomes_come_first_where_several_arms_are_compared(tmp_path):
    named = ("accuracies", "outcomes", "losses_by_arm")
    asked = made_experiment(arms=("one", "other"), seeds=(1,), figures=named)
    found = collect(stored(tmp_path, asked, {1: accuracies()})).figures
    assert found == ("outcomes", "accuracies", "losses_by_arm")


def test_a_users_measure_is_always_drawn(tmp_path):
    rows = {1: [*accuracies(), *curve("train", "my_sparsity", [0.5] * len(POINTS))]}
    asked = made_experiment(seeds=(1,), figures=("grokking",))
    assert collect(stored(tmp_path, asked, rows)).figures == ("grokking", "measures")


# Names.


@pytest.mark.parametrize(
    ("changes", "where", "close"),
    [
        ({"figures": ("grokking", "onset")}, "figures.1 of grokking", "Did you mean onsets?"),
        ({"claims": ("C100",)}, "claims.0 of grokking", "C10"),
        ({"figures": ("gone.py:figure",)}, "figures.0 of grokking", "there is no file gone.py"),
        (
            {
                "arms": ("one", "other"),
                "contrasts": (Contrast(claim="C77", arm="other", against="one"),),
            },
            "contrasts.0.claim of grokking",
            "C7",
        ),
    ],
)
def test_a_wrong_name_is_refused_before_anything_runs(changes, where, close):
    with pytest.raises(ValueError, match=re.escape(where)) as refused:
        check_names(made_experiment(**changes))
    assert close in str(refused.value)


def test_names_that_exist_are_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def figure(study, canvas): ...\n")
    check_names(made_experiment(figures=("grokking", "mine.py:figure"), claims=("C1", "C2")))


# Run again, and elsewhere.


def test_ours_is_run_again_by_name_and_all_else_by_the_file_of_its_settings(tmp_path):
    def command(asked: Experiment) -> str:
        store = Store(tmp_path / "a b")
        store.save_experiment(asked)
        return collect(store).command

    tiny = grokking("tiny")
    assert command(tiny) == "grokscope run grokking --preset tiny --seeds 1,42,15213"
    assert command(tiny.model_copy(update={"seeds": (5,)})).endswith("--seeds 5")
    changed = tiny.model_copy(update={"arms": {"grokking": Run(phases=(Phase(until=3),))}})
    for each in (
        changed, tiny.model_copy(update={"name": "mine"}), tiny.model_copy(update={"preset": "my"}),
    ):  # fmt: skip
        found = command(each)
        assert found.startswith("grokscope run experiment.yaml --out .")
        assert "a b" not in found
    assert find_experiment(str(tmp_path / "a b" / "experiment.yaml")).preset == "my"


def test_a_copied_folder_gives_the_same_page(tmp_path):
    rows = {seed: [*accuracies(), *curve("train", "ncc", ncc(5.0))] for seed in (1, 42)}
    store = stored(tmp_path / "one", made_experiment(figures=("grokking",), claims=("C1",)), rows)
    copy = tmp_path / "elsewhere" / "quite another name"
    shutil.copytree(store.folder, copy)
    pages = [
        write_report(collect(Store(folder)), folder).read_bytes() for folder in (store.folder, copy)
    ]
    assert pages[0] == pages[1]


def test_a_smoke_test_has_no_claims(tmp_path):
    smoke = grokking("tiny").model_copy(update={"seeds": (1,)})
    if not getattr(smoke, "smoke_test", False):
        pytest.skip("presets do not say yet that they are smoke tests")
    store = Store(tmp_path)
    store.save_experiment(smoke)
    ((_, _, (segment,)),) = smoke.runs()
    finish(store, segment, [row for row in accuracies() if row.step <= 60], step=60)
    study = collect(store)
    assert study.smoke_test
    assert not study.claims
