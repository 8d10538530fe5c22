"""Stages: each has its limit, all have one deadline, and none takes the others with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.gpu import runner
from benchmarks.gpu.runner import AGAIN, ATTEMPTS, ROOT, Stage, run_stages, share


def stage(name: str, program: str, limit: float = 20.0) -> Stage:
    return Stage(name, limit, (sys.executable, "-c", program))


def statuses(ended) -> list[str]:
    return [one.status for one in ended]


def test_a_stage_that_crashes_or_fails_does_not_stop_the_next(tmp_path):
    stages = [
        stage("raises", "raise ValueError"),
        stage("is killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        stage("works", "pass"),
    ]
    ended = run_stages(stages, 60, tmp_path)
    assert statuses(ended) == ["failed", "failed", "passed"]
    assert ended[1].reason == "exit status -9"
    written = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert [one["status"] for one in written] == statuses(ended)


def test_a_stage_that_is_cut_keeps_what_it_wrote_and_leaves_no_process(tmp_path):
    program = f"""
import subprocess, sys, time, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(tmp_path / "written")!r}).write_text(str(child.pid))
time.sleep(60)
"""
    begin = time.monotonic()
    ended = run_stages([stage("sleeps", program, limit=3), stage("works", "pass")], 25, tmp_path,
                       reserve=1)  # fmt: skip
    assert statuses(ended) == ["cut", "passed"]
    assert time.monotonic() - begin < 25
    child = int((tmp_path / "written").read_text())
    assert not is_running(child)


def is_running(process: int) -> bool:
    try:
        with Path(f"/proc/{process}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stage_that_asks_for_a_fresh_process_gets_one_until_it_is_done(tmp_path):
    program = f"""
import pathlib, sys
path = pathlib.Path({str(tmp_path / "count")!r})
count = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(count))
sys.exit({AGAIN} if count < 3 else 0)
"""
    (ended,) = run_stages([stage("thrice", program)], 60, tmp_path)
    assert ended.status == "passed"
    assert (tmp_path / "count").read_text() == "3"


def test_a_stage_that_never_stops_asking_is_given_up(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "_run", lambda *_: asked.append(1) or AGAIN)
    (ended,) = run_stages([stage("forever", "pass")], 60, tmp_path)
    assert ended.status == "failed"
    assert len(asked) == ATTEMPTS


def test_no_stage_begins_after_the_deadline_and_the_reserve_is_kept(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(runner, "_run", lambda _, limit: limits.append(limit) or 0)
    stages = [stage(name, "pass", limit=10) for name in ("a", "b")]
    assert statuses(run_stages(stages, 5, tmp_path, reserve=4)) == ["not begun", "not begun"]
    assert limits == []
    run_stages(stages, 50, tmp_path, reserve=20)
    # The last has what is left over from the start, and all that the first did not use.
    assert limits == pytest.approx([10, 30], abs=0.5)


def test_what_a_stage_leaves_is_given_to_the_next_and_what_is_missing_is_shared():
    assert share(100, [20, 30]) == 70  # its 20, and all that later ones do not claim
    assert share(25, [20, 30]) == 10
    assert share(25, [30]) == 25


def test_a_stage_is_told_to_end_before_it_is_killed(tmp_path):
    program = (
        f"import sys, pathlib; pathlib.Path({str(tmp_path / 'told')!r}).write_text(sys.argv[2])"
    )
    begin = time.time()
    run_stages([stage("asks", program, limit=20)], 25, tmp_path)
    assert 15 < float((tmp_path / "told").read_text()) - begin < 25


def test_ctrl_c_lets_the_present_stage_leave_its_checkpoints(tmp_path):
    program = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = pathlib.Path({str(tmp_path)!r})
try:
    (folder / "begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)
    (folder / "left").touch()
"""
    driver = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from benchmarks.gpu.runner import Stage, run_stages\n"
        f"run_stages([Stage('s', 50, {(sys.executable, '-c', program)!r})], 60, "
        f"Path({str(tmp_path)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", driver], env=environment, stderr=subprocess.PIPE
    )
    begin = time.monotonic()
    while not (tmp_path / "begun").exists() and time.monotonic() - begin < 30:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert (tmp_path / "left").exists()
