"""When steps are eager, captured and replayed, with a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from step_cases import CASES

from grokscope.engine.graphs import WARM_UP, Launcher
from grokscope.engine.loop import Training


class Recording:
    """A graph that holds a step and makes it when it is replayed; capturing makes nothing."""

    replays = 0

    def replay(self) -> None:
        Recording.replays += 1
        self.step()


@pytest.fixture
def launcher(monkeypatch) -> Launcher:
    """As on a GPU, but for the graphs."""
    monkeypatch.setattr(Recording, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(Launcher, "_capture", lambda _, graph, step: setattr(graph, "step", step))
    monkeypatch.setattr(Launcher, "_recover", lambda *_: None)
    made = Launcher(torch.device("cpu"))
    made.eager = ""
    return made


def test_on_a_cpu_every_step_is_eager_and_it_says_why():
    made, count = Launcher(torch.device("cpu")), []
    for _ in range(5):
        made("a", lambda: count.append(1))
    assert len(count) == 5
    assert "CPU" in made.eager and made.facts() == {}


def test_each_kind_is_made_eagerly_at_first_and_replayed_from_then_on(launcher):
    made = []
    for kind in "aabaabab":
        launcher(kind, lambda kind=kind: made.append(kind))
    assert made == list("aabaabab")
    assert Recording.replays == 5 - WARM_UP + 3 - WARM_UP


def test_a_whole_run_is_the_same_with_graphs(launcher):
    case = CASES["images, a memory for some steps"]
    eager, captured = (Training(case.task(), case.segment) for _ in range(2))
    captured.launcher = launcher
    expected = [row for tick in eager.run() for row in tick.rows]
    assert [row for tick in captured.run() for row in tick.rows] == expected
    assert Recording.replays > 5 and launcher.eager == ""


def test_a_kind_that_no_graph_can_hold_stays_eager_with_its_reason(launcher):
    made = []
    for _ in range(6):
        launcher("a", lambda: made.append(torch.ones(2).sum().item()))
    assert len(made) == 6 and Recording.replays == 0
    assert "to read a value" in launcher.eager


def test_where_capture_fails_the_step_is_made_once_and_the_run_goes_on_eagerly(
    launcher, monkeypatch
):
    def failing(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nat some place")

    monkeypatch.setattr(Launcher, "_capture", failing)
    made = []
    for _ in range(6):
        launcher("a", lambda: made.append(1))
    assert len(made) == 6
    assert launcher.eager == "capture failed: operation not permitted when stream is capturing"


def test_memory_that_runs_out_during_capture_is_an_error(launcher, monkeypatch):
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Launcher, "_capture", failing)
    launcher("a", lambda: None)
    launcher("a", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        launcher("a", lambda: None)
