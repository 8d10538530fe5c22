"""What is read from a store is what its files hold, whoever wrote them, and is found quickly."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.large_store import cpu_seconds, large_experiment, write_large_store

from grokscope.experiments import find_experiment
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from made_store import POINTS, accuracies, curve, finish, made_experiment, stored
from one_segment import run_segment
from small_runs import experiment, run

RESULTS = Path(__file__).parents[2] / "results"
COLUMNS = ["arm", "seed", "step", "epoch", "split", "measure", "value"]


def by_hand(store: Store) -> pd.DataFrame:
    """Every Parquet file as pandas reads it, one after another."""
    frames = []
    for arm, seed, chain in store.experiment().runs():
        for segment in chain:
            path = store.segments / segment.id / "metrics.parquet"
            if path.is_file():
                frames.append(pd.read_parquet(path).assign(arm=arm, seed=seed))
    whole = pd.concat(frames, ignore_index=True)[COLUMNS]
    return whole.astype({"arm": "str", "split": "str", "measure": "str"})


@pytest.mark.parametrize("name", ["grokking", "suppress-flatness"])
def test_the_files_of_earlier_versions_are_read_as_pandas_reads_them(name):
    store = Store(RESULTS / name)
    metrics = store.metrics(store.experiment())
    assert list(metrics) == COLUMNS
    read = metrics.astype({"arm": "str", "split": "str", "measure": "str"})
    pd.testing.assert_frame_equal(read, by_hand(store), check_exact=True)


def test_arms_that_measure_different_things_are_put_together(tmp_path):
    asked = made_experiment(arms=("plain", "pushed"), seeds=(1,))
    store = Store(tmp_path)
    store.save_experiment(asked)
    for arm, _, (segment,) in asked.runs():
        extra = curve("train", "penalty_ncc", [1.0] * len(POINTS)) if arm == "pushed" else []
        finish(store, segment, [*extra, *accuracies()])
    metrics = store.metrics(asked)
    pd.testing.assert_frame_equal(
        metrics.astype({"arm": "str", "split": "str", "measure": "str"}), by_hand(store)
    )
    assert set(metrics["arm"][metrics["measure"] == "penalty_ncc"]) == {"pushed"}


def test_a_store_without_metrics_has_an_empty_frame_with_the_same_columns(tmp_path):
    metrics = Store(tmp_path).metrics(made_experiment())
    assert metrics.empty
    assert list(metrics) == COLUMNS


def test_a_run_is_read_as_a_table_of_all_its_phases(tmp_path):
    study, store = experiment(seeds=(1,), short=run(10), long=run(10, 25)), Store(tmp_path)
    for _, _, chain in study.runs():
        for segment in chain:
            run_segment(store, segment, lambda _: None, lambda: False)
    steps = {arm: table["step"].to_pylist() for arm, _, table in store.tables(study)}
    metrics = store.metrics(study)
    for arm, of_table in steps.items():
        assert of_table == metrics["step"][metrics["arm"] == arm].tolist()


def test_a_hundred_runs_are_read_in_a_second(tmp_path):
    """A thousand take about 1.1 s of CPU on the machine of docs/benchmarks.md."""
    study = large_experiment(arms=20, seeds=5)
    store, frames = write_large_store(tmp_path, study), []
    unread = large_experiment(arms=20, seeds=5)
    spent = cpu_seconds(lambda: frames.append(store.metrics(unread)))
    spent += cpu_seconds(lambda: frames.append(Plan(unread, store).missing()))
    metrics, missing = frames
    assert not missing
    assert len(metrics) == 100 * 60 * 33 * 2
    assert not metrics.duplicated(["arm", "seed", "step", "split", "measure"]).any()
    assert spent < 1.0


def test_ids_are_kept_and_a_changed_copy_has_its_own():
    study = experiment(seeds=(1, 2), a=run(10, 20))
    before = [segment.id for _, _, chain in study.runs() for segment in chain]
    changed = study.model_copy(update={"seeds": (3,)})
    assert not set(before) & {segment.id for _, _, chain in changed.runs() for segment in chain}
    assert [segment.id for _, _, chain in study.runs() for segment in chain] == before
    assert changed == experiment(seeds=(3,), a=run(10, 20))


# The time left.


def test_the_plan_s_segments_decide_and_others_of_the_folder_stand_in_for_them(tmp_path):
    asked = made_experiment(2000, seeds=(1, 2))
    store = stored(tmp_path, asked, {1: accuracies(), 2: accuracies()})  # 10 s for 2,000 steps
    others = made_experiment(1000, seeds=(7, 8, 9))
    assert Plan(others, store).estimate().seconds == pytest.approx(3 * 1000 * 10 / 2000)
    (first,) = others.arms["grokking"].segments(7)
    finish(store, first, accuracies(), seconds=40.0)
    left = Plan(others, store).estimate()
    assert left.seconds == pytest.approx(2 * 40.0)
    size = sum(path.stat().st_size for path in (store.segments / first.id).iterdir())
    assert left.disk == 2 * size


def test_nothing_left_takes_no_time(tmp_path):
    asked = made_experiment(seeds=(1,))
    store = stored(tmp_path, asked, {1: accuracies()})
    assert Plan(asked, store).estimate().seconds == 0


# The command that was used.


def test_a_folder_keeps_the_command_that_was_used_and_what_stood_beside(tmp_path):
    store = stored(tmp_path / "one", made_experiment(seeds=(1,)), {1: accuracies()})
    other = stored(tmp_path / "two", made_experiment(seeds=(2,)), {2: accuracies()})
    assert store.command() is None and store.beside() is None  # as version 0.1 left it
    store.save_command("grokscope run grokking --seeds 1")
    store.save_command(None, other.folder)
    assert json.loads((tmp_path / "one" / "command.json").read_text()) == {
        "command": "grokscope run grokking --seeds 1",
        "beside": str(other.folder),
    }
    beside = store.beside()
    assert beside is not None and beside.experiment() == other.experiment()


def test_what_stood_beside_is_found_again_where_both_were_copied(tmp_path):
    for name in ("one", "two"):
        stored(tmp_path / "here" / name, made_experiment(seeds=(1,)), {1: accuracies()})
    Store(tmp_path / "here" / "one").save_command("grokscope run x", tmp_path / "here" / "two")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Store(tmp_path / "there" / "one").beside()
    assert moved is not None and moved.folder == tmp_path / "there" / "two"
    (tmp_path / "there" / "two").rename(tmp_path / "gone")
    assert Store(tmp_path / "there" / "one").beside() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": "x"}'])
def test_results_do_not_depend_on_the_command(tmp_path, content):
    store = stored(tmp_path, made_experiment(seeds=(1,)), {1: accuracies()})
    (tmp_path / "command.json").write_text(content)
    assert store.command() is None and store.beside() is None
    store.save_command("grokscope run x")
    assert store.command() == {"command": "grokscope run x", "beside": None}


def test_a_smoke_test_is_still_one_when_it_is_read_back_and_swept(tmp_path):
    from grokscope.spec import sweep

    tiny = find_experiment("grokking", "tiny")
    swept = sweep(tiny, ["batch_size=16,32"])
    store = Store(tmp_path)
    store.save_experiment(swept)
    assert store.experiment().smoke_test
