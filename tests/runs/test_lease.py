"""Several processes on one store: each segment is run by one of them, and none is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.runs.worker import run_segment
from grokscope.spec import Segment, to_yaml
from small_runs import experiment, run

LAUNCHER = """
import sys
from pathlib import Path
from grokscope.runs.launch import Launch, launch
from grokscope.runs.store import Store
from grokscope.spec import read_experiment
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    heard = lambda p: p.finished and print("finished", p.segment, p.step, flush=True)
    tell = lambda words: print("told", words, flush=True)
    done = launch(read_experiment(Path(sys.argv[2])), Store(folder), Launch(workers=1), heard, tell)
    print("all" if done else "some", flush=True)
"""
WORKER = """
import sys
from pathlib import Path
from grokscope.runs import store, worker
from grokscope.spec import Segment
import yaml
from grokscope.spec import Run
store.LEASE = float(sys.argv[3])
run = Run.model_validate(yaml.safe_load(Path(sys.argv[2]).read_text()))
print("ready", flush=True)
try:
    done = worker.run_segment(store.Store(Path(sys.argv[1])), Segment(run=run),
        lambda p: print(p.step, flush=True), lambda: False, checkpoint_seconds=0.05)
    print("done", done, flush=True)
except worker.SegmentBusyError:
    print("busy", flush=True)
"""


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    file = Path(str(arguments[0])) / f"program-{time.monotonic_ns()}.py"
    file.write_text(program)
    command = [sys.executable, str(file), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said_until(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= step:
            return
    raise AssertionError("the process ended before that step")


def started_at(folder: Path, segment: Segment) -> str:
    facts = folder / "segments" / segment.id / "environment.json"
    return json.loads(facts.read_text())["started"]


def test_two_launches_share_a_store_and_both_see_everything_finished(tmp_path):
    study = experiment(seeds=(1, 2, 3), a=run(150, 200), b=run(150, 210))
    spec = tmp_path / "study.yaml"
    spec.write_text(to_yaml(study))
    both = [python(LAUNCHER, tmp_path, spec) for _ in range(2)]
    words = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [lines[-1] for lines in words] == ["all", "all"]
    store = Store(tmp_path)
    assert not Plan(study, store).missing()
    frame = store.metrics(study)
    assert not frame.duplicated(["arm", "seed", "step", "split", "measure"]).any()
    assert not list(tmp_path.rglob("*.lock*"))
    # Alone, with the same settings: nothing depends on who ran what.
    alone = Store(tmp_path / "alone")
    for _, _, chain in study.runs():
        for segment in chain:
            run_segment(alone, segment, lambda _: None, lambda: False)
    pd.testing.assert_frame_equal(frame, alone.metrics(study), check_exact=True)


def test_a_holder_that_was_killed_is_taken_over_from_its_checkpoint(tmp_path):
    study = experiment(seeds=(1,), a=run(1500))
    (segment,) = study.arms["a"].segments(1)
    spec, run_file = tmp_path / "study.yaml", tmp_path / "run.yaml"
    spec.write_text(to_yaml(study))
    run_file.write_text(to_yaml(segment.run))
    holder = python(WORKER, tmp_path, run_file, 30.0)
    said_until(holder, 100)
    waiting = python(LAUNCHER, tmp_path, spec)
    assert waiting.stdout is not None
    assert "Waiting for 1 segments" in waiting.stdout.readline()
    began = time.monotonic()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    rest, _ = waiting.communicate()
    assert rest.splitlines()[-1] == "all"
    assert time.monotonic() - began < 60
    frame = pd.read_parquet(tmp_path / "segments" / segment.id / "metrics.parquet")
    assert not frame.duplicated(["step", "split", "measure"]).any()
    assert set(frame["step"]) >= set(segment.run.observation.points(1500))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP on this system")
def test_a_holder_that_stood_still_too_long_writes_nothing_more(tmp_path):
    (segment,) = run(3000).segments(1)
    run_file = tmp_path / "run.yaml"
    run_file.write_text(to_yaml(segment.run))
    holder = python(WORKER, tmp_path, run_file, 1.0)
    said_until(holder, 50)
    os.kill(holder.pid, signal.SIGSTOP)
    store = Store(tmp_path)
    try:
        from grokscope.runs import store as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LEASE", 1.0)
            deadline = time.monotonic() + 20
            while not store.is_free(segment):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            with store.lease(segment):
                at = store.checkpoint_step(segment)
                os.kill(holder.pid, signal.SIGCONT)
                words, _ = holder.communicate(timeout=30)
                assert store.checkpoint_step(segment) == at
    finally:
        holder.kill()
    assert words.splitlines()[-1] == "busy"
    assert store.outcome(segment) is None
