"""``python -m benchmarks.gpu --tiny`` on a CPU, and what it leaves, read as a user would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.__main__ import FULL, LIMITS, PACKING, main
from benchmarks.gpu.checks.__main__ import CHECKS
from benchmarks.gpu.checks.check import NEEDS_GPU
from benchmarks.gpu.pack import MOST_FILES
from benchmarks.gpu.rates import flatness_sizes
from benchmarks.gpu.runner import ROOT

from grokscope.runs.store import Store


def grokscope(*arguments: str | Path) -> str:
    """What a command of grokscope prints."""
    command = [sys.executable, "-c", "from grokscope.cli import main; main()"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout


def status() -> str:
    command = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def session(out: Path) -> None:
    """A tiny session that does what it should, and changes nothing here."""
    before = status()
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--device", "cpu"]
    command += ["--out", str(out), "--seconds", "580"]  # other tests run beside this one
    environment = {name: value for name, value in os.environ.items() if name != "OUT"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all stages did what they should" in done.stdout
    assert status() == before


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_every_check_has_passed_or_needs_a_gpu(out: Path) -> None:
    items = read(out / "checks.json")["items"]
    assert list(items) == [check.name for check in CHECKS]
    for check in CHECKS:
        entry = items[check.name]
        if check.needs_gpu:
            assert (entry["status"], entry["reason"]) == ("skipped", NEEDS_GPU)
        else:
            assert entry["status"] == "passed"
            assert entry["measured"] <= entry["limit"]


def assert_the_machine_and_the_timings_are_there(out: Path) -> None:
    facts = read(out / "env.json")
    assert facts["device"]["name"] == "cpu"
    assert all(value > 1e6 for value in facts["ceilings"].values())
    timings = read(out / "timings.json")["items"].values()
    assert {entry["status"] for entry in timings} == {"passed"}
    assert all(0 < entry["seconds of a step"] < 60 for entry in timings)


def assert_runs_can_be_read_and_reported(out: Path, name: str, results: Path) -> None:
    """The folder itself, and what comes back of it."""
    assert read(out / "runs.json")[name]["as planned"]
    store = Store(out / name)
    experiment = store.experiment()
    rows = store.metrics(experiment)
    found = set(zip(rows["arm"], rows["seed"], strict=True))
    assert found == {(arm, seed) for arm, seed, _ in experiment.runs()}
    assert "smoke test" in grokscope("claims", out / name)
    with tarfile.open(out / "packed" / f"{name}.tar.gz") as archive:
        archive.extractall(results, filter="data")
    folder = results / f"{experiment.name}-tiny-gpu"
    assert "finished" in grokscope("status", folder)
    assert "report.html" in grokscope("report", folder)
    assert Store(folder).metrics(experiment).equals(rows)


@pytest.mark.slow
def test_a_tiny_session_on_a_cpu_leaves_what_a_user_can_read(tmp_path):
    pytest.importorskip("sklearn")  # digits
    out, results = tmp_path / "out", tmp_path / "results"
    session(out)
    assert_every_check_has_passed_or_needs_a_gpu(out)
    assert_the_machine_and_the_timings_are_there(out)
    for name in ("grokking", "flatness"):
        assert_runs_can_be_read_and_reported(out, name, results)
    packed = list((out / "packed").iterdir())
    assert len(packed) <= MOST_FILES
    assert all(path.is_file() for path in packed)


def test_without_a_gpu_the_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        main(["--out", str(tmp_path)])


def test_the_limits_of_all_stages_leave_room_before_the_deadline():
    whole = {name: limit for name, limit in LIMITS.items() if name != "streams"}
    assert sum(whole.values()) + PACKING <= FULL


def test_the_page_gives_the_limits_and_the_sizes_of_the_code():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    limits = dict(re.findall(r"^\| (\w+) \| (\d+) s \|", page, re.MULTILINE))
    stages = {name: str(limit) for name, limit in LIMITS.items() if name != "streams"}
    assert limits == stages
    steps = re.findall(r"^\| .* \| ([\d,]+) \|$", page, re.MULTILINE)
    assert steps == [f"{size.steps():,}" for size in flatness_sizes(tiny=False)]
