"""The SLURM scripts of docs/clusters.md, with an srun that starts commands on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.spec import to_yaml
from small_runs import experiment, run
from test_docs import ROOT, blocks

SCRIPTS = blocks(ROOT / "docs" / "clusters.md", "slurm")
SRUN = """#!/bin/bash
trap 'kill $(jobs -p) 2> /dev/null' EXIT TERM
tasks=2
while [[ $1 == --* ]]; do
  [[ $1 == --ntasks=* ]] && tasks=${1#*=}
  shift
done
for _ in $(seq "$tasks"); do "$@" & done
wait
"""
GROKSCOPE = f"""#!/bin/bash
# With Ray, only when both nodes are there: the test is of both.
until [[ $* != *--address* || $(grep -c "Ray runtime started" log) == 2 ]]; do sleep 0.5; done
exec {sys.executable} -c 'from grokscope.cli import main; main()' "$@"
"""


@pytest.fixture
def here(tmp_path):
    """A folder with an experiment, and the environment of a job of two nodes of one core."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("grokscope", GROKSCOPE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    study = experiment(seeds=(1, 2), a=run(20, 30))
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    scratch = tempfile.mkdtemp(prefix="gs-")  # short: sockets have names of 107 bytes at most
    own = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1"}
    yield tmp_path, study, os.environ | job | {"PATH": own, "RAY_TMPDIR": scratch}
    shutil.rmtree(scratch, ignore_errors=True)


def processes_of_ray() -> list[str]:
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in shown.stdout.splitlines() if "ray" in line]


@pytest.mark.parametrize("script", SCRIPTS, ids=["ray", "alone"])
def test_a_batch_script_runs_everything_and_leaves_nothing_behind(here, script):
    folder, study, environment = here
    if "ray start" in script:
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'grokscope[ray]'")
    (folder / "job.sbatch").write_text(script)
    command = ["bash", "job.sbatch", "study.yaml", "--out", "out"]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        code = process.wait(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    port = str(20000 + os.getpid() % 10000)
    deadline = time.monotonic() + 30
    while any(port in each for each in processes_of_ray()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    said = (folder / "log").read_text()
    assert code == 0, said
    assert not Plan(study, Store(folder / "out")).missing()
    assert len(re.findall("Report: ", said)) == (1 if "ray start" in script else 2)
