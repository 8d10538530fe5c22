"""Processes that share one store: who runs a segment, and who goes on when that one is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock._soft
import pytest

from grokscope.runs.jobs import Progress
from grokscope.runs.lease import Lease
from grokscope.runs.options import RunOptions
from grokscope.runs.store import Store
from grokscope.runs.worker import run_job
from small_runs import segment

STUDY = """
import os, time
from multiprocessing import parent_process
from pathlib import Path
import torch
from torch import nn
from grokscope import Split, Task
from grokscope.spec import CustomTask, Experiment, Observation, Phase, Run

HERE = Path(__file__).parent


def experiment(preset):
    run = Run(
        task=CustomTask(function=f"{__file__}:clusters"), batch_size=16,
        phases=(Phase(until=30),), observation=Observation(per_decade=3, max_gap=5),
    )
    return Experiment(name="shared", preset=preset, title="Shared", question="Who runs what?",
                      arms={"a": run}, seeds=(1, 2, 3))


def clusters(seed):
    begun = []

    def loss(logits, labels):
        if parent_process() is not None and logits.requires_grad and not begun:
            begun.append(True)
            with (HERE / "ran.log").open("a") as log:
                log.write(f"{os.getppid()} {os.getpid()}\\n")
        while (HERE / "hold").exists():
            time.sleep(0.02)
        return nn.functional.cross_entropy(logits, labels)

    labels = torch.arange(60) % 3
    inputs = 4 * torch.eye(3)[labels] + torch.randn(60, 3)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    return Task(model, Split(inputs[:40], labels[:40]), Split(inputs[40:], labels[40:]), loss=loss)
"""
HOLDER = (
    "import sys, time; from pathlib import Path; from grokscope.runs.lease import Lease\n"
    "lease = Lease(Path(sys.argv[1]), 1.0, 0.2)\n"
    "assert lease.take(); print('taken', flush=True); time.sleep(60)"
)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def held_by_another(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "taken\n"
    return holder


def test_a_lease_of_a_killed_process_is_free_at_once_on_its_machine(tmp_path):
    holder = held_by_another(tmp_path / "x.lease")
    lease = Lease(tmp_path / "x.lease", 1.0, 0.2)
    try:
        time.sleep(1.5)
        assert not lease.take()  # it is renewed
    finally:
        holder.kill()
        holder.wait()
    assert lease.take() and lease.held()
    lease.free()
    assert not list(tmp_path.iterdir())


def test_a_process_that_sleeps_loses_its_lease_after_the_expiry(tmp_path):
    holder = held_by_another(tmp_path / "x.lease")
    lease = Lease(tmp_path / "x.lease", 1.0, 0.2)
    try:
        holder.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        until(lease.take)
        assert time.monotonic() - began > 0.9
        holder.send_signal(signal.SIGCONT)
        time.sleep(0.6)
        assert lease.held()  # its late renewals are none
    finally:
        holder.kill()
        holder.wait()
    lease.free()


@pytest.mark.parametrize("refused", [True, False])
def test_an_abandoned_file_is_removed_where_the_library_does_not_take_it_over(
    tmp_path, monkeypatch, refused
):
    path = tmp_path / "x.lease"
    lease = Lease(path, 0.3, 0.1)
    if refused:  # as by NFS and SMB
        monkeypatch.setattr(filelock._soft, "exchange_names", lambda *_: False)
        holder = held_by_another_machine(path)
    else:  # killed between two system calls
        holder = ""
        path.write_text(holder)
    began = time.monotonic()
    until(lease.take, 10)
    assert time.monotonic() - began > 0.6
    assert lease.held() and path.read_text() != holder
    lease.free()


def held_by_another_machine(path: Path) -> str:
    other = Lease(path, 0.3, 0.1)
    assert other.take()
    marker = path.read_text()
    other.free()
    elsewhere = re.sub(r"^host=.*$", "host=elsewhere", marker, flags=re.MULTILINE)
    assert elsewhere != marker
    path.write_text(elsewhere)
    return elsewhere


def test_who_has_lost_the_lease_notices_at_the_next_tick_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("grokscope.runs.worker.CONFIRM_SECONDS", 0)
    of, store = segment(60), Store(tmp_path)
    lease = tmp_path / "segments" / f"{of.id}.lease"
    heard: list[Progress] = []

    def robbed(progress):
        heard.append(progress)
        if len(heard) == 3:
            lease.unlink()
            lease.write_text("another's")

    run_job(store, [of], robbed, lambda: False, options=RunOptions(checkpoint_seconds=1e9))
    assert [progress.busy for progress in heard] == [False, False, False, True]
    assert store.outcome(of) is None and store.checkpoint_step(of) is None
    assert lease.read_text() == "another's"


def started(folder: Path, out: str) -> subprocess.Popen[str]:
    main = Path(sys.executable).with_name("grokscope")
    return subprocess.Popen(
        [main, "run", "study.py:experiment", "--workers", "2", "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


def ran(folder: Path) -> list[list[int]]:
    log = folder / "ran.log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [[int(number) for number in line.split()] for line in lines]


def test_two_runs_share_a_store_and_go_on_where_one_is_killed(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    (tmp_path / "hold").touch()
    both = [started(tmp_path, "out")]
    until(lambda: len(ran(tmp_path)) == 2)  # both of its workers are under way
    both.append(started(tmp_path, "out"))
    until(lambda: len(ran(tmp_path)) == 3)  # the only seed that is left
    (tmp_path / "hold").unlink()
    said = [each.communicate(timeout=90)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], "\n".join(said)[-1500:]
    assert all("Report: " in each for each in said)
    log = ran(tmp_path)
    assert len(log) == 3  # three seeds, each once
    assert {parent for parent, _ in log} == {each.pid for each in both}

    (tmp_path / "ran.log").unlink()
    (tmp_path / "hold").touch()
    first = started(tmp_path, "again")
    until(lambda: len(ran(tmp_path)) == 2)
    second = started(tmp_path, "again")
    until(lambda: len(ran(tmp_path)) == 3)
    victims = [pid for parent, pid in ran(tmp_path) if parent == first.pid]
    for pid in (first.pid, *victims):  # as when a machine goes down
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    (tmp_path / "hold").unlink()
    said = [second.communicate(timeout=90)[0]]
    assert second.returncode == 0 and "Report: " in said[0], said
    assert len(list((tmp_path / "again" / "segments").glob("*/state.json"))) == 3
    assert not list(tmp_path.rglob("*.lease"))
