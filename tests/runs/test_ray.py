"""A real Ray cluster of several nodes on this machine: as on one, whatever is lost under way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from grokscope.runs.executors import ray as module
from grokscope.runs.executors.ray import RayExecutor
from grokscope.runs.jobs import Progress
from grokscope.runs.launch import RunFailedError, RunOptions, launch
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.spec import CustomTask, Experiment, Optimizer, Phase, to_yaml
from small_runs import BROKEN, experiment, run

pytest.importorskip("ray", reason="Ray is not installed: pip install 'grokscope[ray]'")
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A head that runs nothing and two nodes of one core; nothing of another cluster here."""
    folder = tempfile.mkdtemp(prefix="gs-")  # short: sockets have names of 107 bytes at most
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(each for each in sys.path if each))
        from ray.cluster_utils import Cluster

        head = NODE | {"num_cpus": 0, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                nodes.add_node(**NODE)
            nodes.wait_for_nodes()
            yield nodes
        finally:
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def on(cluster, **changes: object) -> RunOptions:
    return RunOptions(**({"on": "ray", "address": cluster.address, "device": "cpu"} | changes))


def assert_same(study: Experiment, one: Store, other: Store) -> None:
    """Metrics and states are equal, bit for bit."""
    assert not Plan(study, one).missing() and not Plan(study, other).missing()
    frame = one.metrics(study)
    pd.testing.assert_frame_equal(frame, other.metrics(study), check_exact=True)
    assert not frame.duplicated(["arm", "seed", "step", "split", "measure"]).any()
    states = [sorted(store.segments.glob("*/state.safetensors")) for store in (one, other)]
    assert [each.parent.name for each in states[0]] == [each.parent.name for each in states[1]]
    for own, others in zip(*states, strict=True):
        assert own.read_bytes() == others.read_bytes()


def runs_on(cluster):
    """The node that runs a task of ours."""
    shown = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    lines = [line for line in shown.stdout.splitlines() if "ray::_run_task" in line]
    parents = {int(line.split()[0]) for line in lines}
    (node,) = [
        each
        for each in cluster.worker_nodes
        if each.all_processes["raylet"][0].process.pid in parents
    ]
    return node


def test_a_tree_run_by_a_cluster_equals_one_run_here(cluster, tmp_path):
    tail = Phase(until=30, optimizer=Optimizer(lr=1e-3))
    forked = run(10, 30).model_copy(update={"phases": (run(10).phases[0], tail)})
    hot = run(20, 40, lr=1e30)
    study = experiment(seeds=(1,), one=run(10, 30), other=forked, hot=hot)
    there, here, heard = Store(tmp_path / "there"), Store(tmp_path / "here"), []
    assert launch(study, there, on(cluster), heard.append)
    assert launch(study, here, RunOptions(workers=1), lambda _: None)
    assert_same(study, there, here)
    finished = [each.segment for each in heard if each.finished]
    assert len(finished) == len(set(finished)) == 4  # of the hot arm, only the first phase
    assert len(list(there.segments.glob("*/environment.json"))) == 4


def test_a_node_killed_under_way_loses_nothing_that_was_checkpointed(cluster, tmp_path):
    study = experiment(seeds=(1,), a=run(1500))
    (segment,) = study.arms["a"].segments(1)
    there, here = Store(tmp_path / "there"), Store(tmp_path / "here")
    at: list[int] = []  # of the checkpoint when the node was killed
    after: list[int] = []

    def report(progress: Progress) -> None:
        step = there.checkpoint_step(segment)
        if at:
            after.append(progress.step)
        elif step is not None and progress.step > 100:
            cluster.remove_node(runs_on(cluster), allow_graceful=False)
            at.append(there.checkpoint_step(segment) or 0)

    assert launch(study, there, on(cluster, checkpoint_seconds=0.1), report)
    assert at[0] > 0
    assert len(after) > 1  # the rest was run, elsewhere
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    assert launch(study, here, RunOptions(workers=1), lambda _: None)
    assert_same(study, there, here)


def test_a_segment_that_fails_is_told_and_the_others_keep_their_work(
    cluster, tmp_path, monkeypatch
):
    (tmp_path / "task.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    task = CustomTask(function="task.py:broken", arguments={"after": 2500})
    study = experiment(seeds=(1,), good=run(500_000), bad=run(500_000, task=task))
    store = Store(Path("out"))
    with pytest.raises(RunFailedError, match="the loss is broken"):
        launch(study, store, on(cluster), lambda _: None)
    assert store.checkpoint_step(study.arms["good"].segments(1)[0]) is not None


def test_an_interrupt_leaves_checkpoints_and_says_how_to_go_on(cluster, tmp_path):
    spec = tmp_path / "study.yaml"
    study = experiment(seeds=(1, 2), a=run(500_000))
    spec.write_text(to_yaml(study))
    store = Store(tmp_path / "out")
    program = "from grokscope.cli import main; main()"
    options = ["--on", "ray", "--address", cluster.address, "--checkpoint-seconds", "0.5"]
    command = [sys.executable, "-c", program, "run", str(spec), "--out", str(store.folder)]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    segments = [chain[0] for _, _, chain in study.runs()]
    deadline = time.monotonic() + 60
    while any(store.checkpoint_step(each) is None for each in segments):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "To resume, run this again" in said and "Traceback" not in said
    assert all(store.is_free(each) for each in segments)


def failure(executor: RayExecutor, study: Experiment) -> str:
    try:
        executor.submit(study.arms["a"].segments(1))
        while True:
            for progress in executor.poll():
                if progress.failure:
                    return progress.failure
    finally:
        executor.shutdown()


def test_a_node_without_the_folder_or_with_another_version_says_so(cluster, tmp_path, monkeypatch):
    study = experiment(seeds=(1,), a=run(10))
    executor = RayExecutor(Store(tmp_path / "nowhere"), on(cluster))
    assert "does not see" in failure(executor, study)
    store = Store(tmp_path)
    store.save_experiment(study)
    monkeypatch.setattr(module, "__version__", "9.9")
    assert "but this is 9.9" in failure(RayExecutor(store, on(cluster)), study)


def test_an_address_without_a_cluster_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.0)
    study = experiment(seeds=(1,), a=run(10))
    how = RunOptions(on="ray", address="127.0.0.1:9")
    with pytest.raises(ValueError, match="there is no Ray cluster at 127.0.0.1:9"):
        launch(study, Store(tmp_path), how, lambda _: None)
    with pytest.raises(ValueError, match="add --on ray"):
        RunOptions(address="auto")


def grokscope_run(folder: Path, prelude: str = "") -> subprocess.CompletedProcess[str]:
    (folder / "study.yaml").write_text(to_yaml(experiment(seeds=(1,), a=run(10))))
    program = f"{prelude}\nfrom grokscope.cli import main; main()"
    command = [sys.executable, "-c", program, "run", "study.yaml", "--out", "out", "--on", "ray"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_without_an_address_a_cluster_is_started_and_shut_down(tmp_path):
    done = grokscope_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Report: " in done.stdout
    assert len(list((tmp_path / "out" / "segments").glob("*/state.json"))) == 1


def test_where_ray_is_missing_it_is_said_how_to_get_it(tmp_path):
    done = grokscope_run(tmp_path, "import sys; sys.modules['ray'] = None")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --on ray needs Ray: pip install 'grokscope[ray]'")
    assert "Traceback" not in done.stderr


def test_the_device_is_what_the_cluster_has():
    gpus, none = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}
    assert module._resolve(RunOptions(), gpus).device == "cuda"
    assert module._resolve(RunOptions(device="cpu"), gpus).device == "cpu"
    assert module._resolve(RunOptions(), none).device == "cpu"
    with pytest.raises(ValueError, match="the cluster has no GPU"):
        module._resolve(RunOptions(device="cuda"), none)
    with pytest.raises(ValueError, match="Ray chooses"):
        module._resolve(RunOptions(device="cuda:1"), gpus)
