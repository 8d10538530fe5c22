"""Processes that are killed at any moment, and runs that go on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from grokscope.runs.store import Store
from grokscope.spec import Segment, to_yaml
from one_segment import run_segment
from small_runs import experiment, run, segment

UNTIL = 240
WORKER = """
import sys, torch
from pathlib import Path
from grokscope.runs.store import Store
from grokscope.runs.options import RunOptions
from grokscope.runs.worker import run_job
from grokscope.spec import Run, Segment
import yaml
run = Run.model_validate(yaml.safe_load(Path(sys.argv[2]).read_text()))
run_job(Store(Path(sys.argv[1])), [Segment(run=run)], lambda p: print(p.step, flush=True),
        lambda: False, options=RunOptions(checkpoint_seconds=0.05))
"""


def start(folder: Path, of: Segment) -> subprocess.Popen[str]:
    spec = folder / "run.yaml"
    spec.write_text(to_yaml(of.run))
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(spec)], stdout=subprocess.PIPE, text=True
    )


def result(folder: Path, of: Segment) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    final = folder / "segments" / of.id
    return load_file(final / "state.safetensors"), pd.read_parquet(final / "metrics.parquet")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    of = segment(UNTIL)
    assert run_segment(Store(folder), of, lambda _: None, lambda: False)
    return of, *result(folder, of)


@pytest.mark.parametrize("kill_after", [(1, 70, 150), (0, 200, 239), (30, 31, 32)])
def test_a_run_killed_anywhere_continues_as_if_it_had_not_been(tmp_path, undisturbed, kill_after):
    of, state, metrics = undisturbed
    kills = 0
    for step in kill_after:
        process = start(tmp_path, of)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= step:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        kills += process.wait() == -signal.SIGKILL
    last = start(tmp_path, of)
    assert last.communicate()[0] is not None and last.returncode == 0
    assert kills >= 2  # the machine may finish before the last signal comes
    after_state, after_metrics = result(tmp_path, of)
    assert after_state.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(after_state[name], tensor), name
    pd.testing.assert_frame_equal(after_metrics, metrics, check_exact=True)
    assert not after_metrics.duplicated(["step", "split", "measure"]).any()
    assert not list(tmp_path.rglob("*.tmp"))


def grandchildren(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in found.stdout.splitlines()[1:]]
    own = [pid for pid, of in pairs if of == parent]
    return own + [pid for each in own for pid in grandchildren(each)]


def test_workers_outlive_a_killed_parent_only_until_their_checkpoint(tmp_path):
    study = experiment(seeds=(1, 2), a=run(200_000))
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from grokscope.runs.launch import RunOptions, launch\n"
        "from grokscope.runs.store import Store\n"
        "from grokscope.spec import read_experiment\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    launch(read_experiment(folder / 'study.yaml'), Store(folder), RunOptions(workers=2),\n"
        "           lambda p: print(p.segment, p.step, flush=True))\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    heard: set[str] = set()
    for line in process.stdout:
        name, step = line.split()
        if int(step) > 20:
            heard.add(name)
        if len(heard) == 2:
            break
    workers = [pid for pid in grandchildren(process.pid) if pid != process.pid]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    store = Store(tmp_path)
    for _, _, (of,) in study.runs():
        step = store.checkpoint_step(of)
        assert step is not None and step >= 20
    assert os.getpid() not in workers
