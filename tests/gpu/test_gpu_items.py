"""Items of a stage: what one finds is written before the next begins, and none is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import work
from benchmarks.gpu.files import RUNNING, Items, read_json, write_json
from benchmarks.gpu.runner import AGAIN, ROOT
from benchmarks.gpu.session import Session
from benchmarks.gpu.work import run_items

PASSED = {"status": "passed"}


def session(folder: Path, seconds: float = 60.0) -> Session:
    return Session(folder, time.monotonic() + seconds, torch.device("cpu"), tiny=True)


def run(folder: Path, items: Items, **functions) -> int:
    return run_items(session(folder), items, functions, limit=60, describe=lambda _: "")


def test_an_item_that_raises_has_failed_and_the_next_is_done(tmp_path):
    items = Items(tmp_path / "items.json", {"device": "cpu"})

    def breaks():
        raise ZeroDivisionError("it is broken")

    assert run(tmp_path, items, breaks=breaks, works=lambda: dict(PASSED)) == 1
    written = json.loads((tmp_path / "items.json").read_text())
    assert written["device"] == "cpu"
    assert written["items"]["breaks"]["reason"] == "ZeroDivisionError: it is broken"
    assert written["items"]["works"]["status"] == "passed"


def test_every_item_finds_those_before_it_written(tmp_path):
    path = tmp_path / "items.json"
    seen = []

    def looks():
        seen.append({name: entry["status"] for name, entry in read_json(path)["items"].items()})
        return dict(PASSED)

    assert run(tmp_path, Items(path), first=looks, second=looks) == 0
    assert seen == [{"first": RUNNING}, {"first": "passed", "second": RUNNING}]


def test_what_was_running_when_the_process_ended_has_failed_and_is_not_tried_again(tmp_path):
    path = tmp_path / "items.json"
    write_json(path, {"items": {"crashed": {"status": RUNNING}, "done": PASSED}})
    tried = []

    def item():
        tried.append(1)
        return dict(PASSED)

    assert run(tmp_path, Items(path), crashed=item, done=item, new=item) == 1
    assert len(tried) == 1
    assert read_json(path)["items"]["crashed"]["status"] == "failed"


def test_what_is_left_at_the_deadline_is_skipped_and_said(tmp_path, capsys):
    items = Items(tmp_path / "items.json")
    late = session(tmp_path, seconds=-1)
    code = run_items(late, items, {"late": dict}, limit=60, describe=lambda _: "")
    assert code == 1
    assert items.entries["late"] == {"status": "skipped", "reason": "no time was left"}
    assert "no time was left: late" in capsys.readouterr().out


def test_an_item_that_hangs_ends_the_process_which_asks_for_another(tmp_path):
    program = f"""
import time
from pathlib import Path
from test_gpu_items import session
from benchmarks.gpu.files import Items
from benchmarks.gpu.work import run_items
items = Items(Path({str(tmp_path / "items.json")!r}), {{}})
work = {{"hangs": lambda: time.sleep(60)}}
run_items(session(Path({str(tmp_path)!r})), items, work, limit=0.5, describe=str)
"""
    paths = ":".join(map(str, (ROOT, ROOT / "src", ROOT / "tests" / "gpu")))
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == AGAIN, done.stderr
    assert "hangs, after" in done.stdout
    assert "time.sleep" in done.stderr or "<string>" in done.stderr  # where it hung
    items = Items(tmp_path / "items.json")
    assert run(tmp_path, items, hangs=dict) == 1
    assert items.entries["hangs"]["status"] == "failed"


@pytest.mark.parametrize("status", ["passed", "failed"])
def test_a_gpu_that_no_longer_answers_makes_the_item_fail_and_asks_for_a_process(
    tmp_path, monkeypatch, status
):
    monkeypatch.setattr(Session, "on_gpu", property(lambda _: True))
    monkeypatch.setattr(work, "answers", lambda: False)
    items = Items(tmp_path / "items.json")
    assert run(tmp_path, items, one=lambda: {"status": status}, two=dict) == AGAIN
    assert items.entries["one"]["status"] == "failed"
    assert items.left(["one", "two"]) == ["two"]
