"""What comes back from a device machine can be read like any other results, and is small."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import pack as packing
from benchmarks.gpu.pack import MOST_FILES, pack

from grokscope.analysis.run import Results
from grokscope.report.page import write_report
from grokscope.report.study import claims_of, collect
from grokscope.runs.store import Store
from grokscope.runs.worker import run_job
from small_runs import experiment, run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A session's folder: one run has finished, one was stopped on its way."""
    out = tmp_path / "out"
    store, runs = Store(out / "flatness"), experiment(seeds=(1, 2), a=run(30))
    store.save_experiment(runs)
    finished, stopped = (runs.arms["a"].segments(seed)[0] for seed in runs.seeds)
    run_job(store, [finished], lambda _: None, lambda: False)
    steps = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == 3

    run_job(store, [stopped], lambda _: None, stop)
    assert store.checkpoint_step(stopped)
    (out / "checks.json").write_text("{}")
    return out


def unpacked(out: Path, folder: Path) -> Store:
    (archive,) = (out / "packed").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (only,) = folder.iterdir()
    return Store(only)


def test_unpacked_runs_are_read_and_reported_without_their_states(out, tmp_path):
    assert pack(out, out / "packed") == []
    here, there = Store(out / "flatness"), unpacked(out, tmp_path / "results")
    assert not list(there.folder.rglob("*.safetensors"))
    runs = here.experiment()
    assert there.experiment() == runs
    frame = there.metrics(runs)
    assert frame.equals(here.metrics(runs))
    assert set(frame["seed"]) == {1, 2}
    assert there.environments(runs) == here.environments(runs)
    assert claims_of(Results.read(there)) is not None
    assert write_report(collect(there), there.folder).is_file()


def test_the_archive_has_a_name_by_which_it_can_lie_beside_other_results(out, tmp_path):
    pack(out, out / "packed")
    assert unpacked(out, tmp_path / "results").folder.name == "small-default-gpu"


def test_what_is_half_written_stays_behind(out):
    hidden = out / "flatness" / "segments" / ".abc.1-2.tmp"
    hidden.mkdir()
    (hidden / "state.json").write_text("{")
    pack(out, out / "packed")
    with tarfile.open(out / "packed" / "flatness.tar.gz") as file:
        assert not [name for name in file.getnames() if ".tmp" in name]


def test_packing_again_replaces_what_was_packed(out):
    pack(out, out / "packed")
    (out / "checks.json").write_text(json.dumps({"items": {}}))
    pack(out, out / "packed")
    assert json.loads((out / "packed" / "checks.json").read_text()) == {"items": {}}
    assert {path.name for path in (out / "packed").iterdir()} == {"checks.json", "flatness.tar.gz"}


def test_a_file_that_is_too_large_and_one_too_many_are_said(out, monkeypatch):
    monkeypatch.setattr(packing, "MOST_BYTES", 1000)
    for number in range(MOST_FILES):
        (out / f"{number}.json").write_text("{}")
    large, many = pack(out, out / "packed")
    assert "flatness.tar.gz has" in large
    assert "has 10 files, more than the 8 that come back" in many


def test_results_don_t_go_where_only_eight_files_are_taken_from(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    with pytest.raises(SystemExit, match="leave --out away"):
        command.folders(tmp_path, None)
    assert command.folders(tmp_path / "all", None) == (tmp_path / "all", tmp_path)
    monkeypatch.delenv("OUT")
    assert command.folders(tmp_path, None) == (tmp_path, tmp_path / "packed")
