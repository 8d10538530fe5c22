"""What lies on the disk: whole, tidy, readable by anyone, and never executed."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import yaml

from grokscope.runs.jobs import Progress
from grokscope.runs.options import RunOptions
from grokscope.runs.store import Store
from grokscope.runs.worker import run_job
from grokscope.spec import Run
from one_segment import run_segment
from small_runs import experiment, run, segment


def finished(folder, of) -> Store:
    store = Store(folder)
    assert run_segment(store, of, lambda _: None, lambda: False)
    return store


def test_a_finished_segment_holds_what_the_design_promises(tmp_path):
    of = segment(20)
    finished(tmp_path, of)
    folder = tmp_path / "segments" / of.id
    assert {each.name for each in folder.iterdir()} == {
        "spec.yaml",
        "metrics.parquet",
        "state.safetensors",
        "state.json",
        "environment.json",
    }
    assert Run.model_validate(yaml.safe_load((folder / "spec.yaml").read_text())) == of.run
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert list(metrics) == ["step", "epoch", "replica", "split", "measure", "value"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["seeds"] == {"split": 1, "initialisation": 1, "order": 1}
    assert environment["seconds"] > 0
    assert environment["torch"]


def test_nothing_on_the_disk_is_a_pickle(tmp_path):
    of = segment(20)
    finished(tmp_path, of)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.suffix in {".yaml", ".parquet", ".safetensors", ".json"}
            content = path.read_bytes()
            assert not content.startswith(b"\x80") and b"PK\x03\x04" not in content[:4]


def test_metrics_name_arm_and_seed_and_run_through_all_phases(tmp_path):
    study = experiment(seeds=(1,), short=run(10), long=run(10, 25))
    store = Store(tmp_path)
    for _, _, chain in study.runs():
        for each in chain:
            run_segment(store, each, lambda _: None, lambda: False)
    frame = store.metrics(study)
    assert list(frame.columns[:3]) == ["arm", "seed", "step"]
    assert frame[frame["arm"] == "short"]["step"].max() == 10
    assert frame[frame["arm"] == "long"]["step"].max() == 25
    first = frame[(frame["arm"] == "long") & (frame["step"] <= 10)].drop(columns="arm")
    short = frame[frame["arm"] == "short"].drop(columns="arm")
    pd.testing.assert_frame_equal(
        first.reset_index(drop=True), short.reset_index(drop=True), check_categorical=False
    )
    assert len(list((tmp_path / "segments").glob("*/state.json"))) == 2  # the prefix ran once


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    of = segment(20)
    store = Store(tmp_path)
    seen = []

    def stop() -> bool:
        seen.append(1)
        return len(seen) == 2

    assert not run_segment(store, of, lambda _: None, stop)
    before = store.checkpoint_step(of)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("grokscope.runs.store.save_file", full)
    with pytest.raises(OSError, match="No space"):
        run_segment(
            store, of, lambda _: None, lambda: False, options=RunOptions(checkpoint_seconds=0)
        )
    assert store.checkpoint_step(of) == before
    assert store.last_checkpoint(of) is not None
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_killed_writer_left_is_swept_away(tmp_path):
    of = segment(20)
    left = tmp_path / "segments" / f".{of.id}.12345.tmp"
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"half")
    finished(tmp_path, of)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_segment_is_run_by_one_process_at_a_time(tmp_path):
    of = segment(20)
    store = Store(tmp_path)
    heard: list[Progress] = []
    with store.lock(of):
        run_job(Store(tmp_path), [of], heard.append, lambda: False)
        with (
            pytest.raises(RuntimeError, match=r"being run by another process.*--out"),
            Store(tmp_path).lock(of),
        ):
            pass
    assert [progress.busy for progress in heard] == [True]
    assert store.outcome(of) is None


def test_a_finished_segment_is_not_run_again(tmp_path):
    of = segment(20)
    store = finished(tmp_path, of)
    state = tmp_path / "segments" / of.id / "state.safetensors"
    before = state.stat().st_mtime_ns
    heard = []
    assert run_segment(store, of, heard.append, lambda: False)
    assert state.stat().st_mtime_ns == before
    assert [each.finished for each in heard] == [True]


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="grokscope run NAME --out"):
        Store(tmp_path).experiment()


def test_an_experiment_comes_back_as_it_was_saved(tmp_path):
    study = experiment(seeds=(3, 4), a=run(10), b=run(10, 20))
    store = Store(tmp_path)
    store.save_experiment(study)
    assert store.experiment() == study


def test_a_broken_experiment_file_is_named(tmp_path):
    (tmp_path / "experiment.yaml").write_text("name: [unclosed")
    with pytest.raises(ValueError, match=r"experiment\.yaml is not a grokscope experiment"):
        Store(tmp_path).experiment()


def test_a_checkpoint_keeps_its_threads_whatever_is_asked_for_later(tmp_path):
    import torch

    before = torch.get_num_threads()
    try:
        of, seen = segment(10, 20), []
        store = Store(tmp_path)
        assert of.parent is not None
        run_segment(store, of.parent, lambda _: None, lambda: False, options=RunOptions(threads=1))
        run_segment(store, of, lambda _: None, lambda: True, options=RunOptions(threads=2))
        run_segment(
            store,
            of,
            lambda _: seen.append(torch.get_num_threads()),
            lambda: False,
            options=RunOptions(threads=1),
        )
        assert seen[0] == 2
    finally:
        torch.set_num_threads(before)


DAMAGE = {
    "empty": b"",
    "cut off": b'{"step": 2',
    "no object": b"[1]",
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["state.json", "environment.json", "metrics.parquet"])
def test_a_damaged_file_of_a_finished_segment_is_named_with_the_cure(tmp_path, name, content):
    study = experiment(seeds=(1,), a=run(10))
    (of,) = study.arms["a"].segments(1)
    store = finished(tmp_path, of)
    path = tmp_path / "segments" / of.id / name
    path.write_bytes(content)
    read = {
        "state.json": lambda: store.outcome(of),
        "environment.json": lambda: store.environments(study),
        "metrics.parquet": lambda: store.metrics(study),
    }
    with pytest.raises(ValueError) as refused:
        read[name]()
    told = str(refused.value)
    assert told.startswith(f"{path} is damaged (") and "\n" not in told
    assert told.endswith(f"); delete the folder {path.parent} to run this segment again")


def test_a_state_that_lacks_a_fact_is_damaged(tmp_path):
    of = segment(20)
    store = finished(tmp_path, of)
    (tmp_path / "segments" / of.id / "state.json").write_text('{"step": 20}')
    with pytest.raises(ValueError, match=r"state\.json is damaged \(it lacks optimizer\)"):
        store.outcome(of)


def stopped(folder, of) -> Store:
    store = Store(folder)
    assert not run_segment(store, of, lambda _: None, lambda: True)
    return store


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "metrics.parquet"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_segment_starts_again(tmp_path, name):
    of = segment(20)
    store = stopped(tmp_path, of)
    (folder,) = (tmp_path / "segments" / f"{of.id}.partial").iterdir()
    path = folder / name
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(ValueError) as refused:
        run_segment(store, of, lambda _: None, lambda: False)
    assert str(refused.value).startswith(f"{path} is damaged (")
    path.unlink()
    with pytest.raises(ValueError) as refused:
        run_segment(store, of, lambda _: None, lambda: False)
    cure = f"; delete the folder {folder} to run this segment again"
    assert str(refused.value) == f"{path} is missing{cure}"
    shutil.rmtree(folder)
    assert run_segment(store, of, lambda _: None, lambda: False)


def test_a_lease_is_there_while_a_segment_is_run(tmp_path):
    of = segment(20)
    lease = tmp_path / "segments" / f"{of.id}.lease"
    store = stopped(tmp_path, of)
    assert not lease.exists()
    with store.lock(of):
        assert lease.is_file()
    assert run_segment(store, of, lambda _: None, lambda: False)
    assert not list(tmp_path.rglob("*.lease"))
