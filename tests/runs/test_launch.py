"""Many segments on one machine: in order, each once, and nothing lost when one fails."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from grokscope.runs.launch import Launch, RunFailedError, _Pool, launch
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.runs.worker import Progress
from grokscope.spec import CustomTask, Optimizer, Phase
from small_runs import experiment, run

BROKEN = '''
import torch
from grokscope import Split, Task

def broken(after: int) -> Task:
    """A model whose loss fails after so many steps."""
    data = Split(torch.randn(40, 4), torch.arange(40) % 4)
    calls = []

    def loss(logits, labels):
        calls.append(1)
        if len(calls) > after:
            raise ZeroDivisionError("the loss is broken")
        return torch.nn.functional.cross_entropy(logits, labels)

    return Task(torch.nn.Linear(4, 4), data, data, loss=loss)
'''


def test_arms_that_begin_alike_run_their_beginning_once(tmp_path):
    tail = Phase(until=30, optimizer=Optimizer(lr=1e-3))
    forked = run(10, 30).model_copy(update={"phases": (run(10).phases[0], tail)})
    study = experiment(seeds=(1, 2), short=run(10), one=run(10, 30), other=forked)
    store, heard = Store(tmp_path), []
    assert launch(study, store, Launch(workers=2), heard.append)
    folders = [each for each in (tmp_path / "segments").iterdir() if each.is_dir()]
    assert len(folders) == 2 * 3  # a prefix and two endings for each seed
    finished = [each.segment for each in heard if each.finished]
    assert len(finished) == len(set(finished)) == 6
    prefixes = {chain[0].id for _, _, chain in study.runs()}
    first_seen = list(dict.fromkeys(each.segment for each in heard))
    assert set(first_seen[:2]) == prefixes  # parents before children


def test_what_is_finished_is_not_run_again_and_the_rest_is(tmp_path):
    store = Store(tmp_path)
    launch(experiment(seeds=(1,), a=run(10)), store, Launch(workers=1), lambda _: None)
    wider = experiment(seeds=(1, 2), a=run(10))
    assert len(Plan(wider, store).missing()) == 1
    heard = []
    launch(wider, store, Launch(workers=2), heard.append)
    assert len({each.segment for each in heard}) == 1
    assert Plan(wider, store).summary() == "2 segments: 2 finished"


def test_a_segment_that_fails_is_named_and_the_others_keep_their_work(tmp_path, monkeypatch):
    (tmp_path / "task.py").write_text(BROKEN)
    task = CustomTask(function=f"{tmp_path / 'task.py'}:broken", arguments={"after": 25})
    study = experiment(seeds=(1,), good=run(50_000), bad=run(50_000, task=task))
    store = Store(tmp_path / "out")
    with pytest.raises(RunFailedError, match="the loss is broken"):
        launch(study, store, Launch(workers=2), lambda _: None)
    good = study.arms["good"].segments(1)[0]
    assert store.checkpoint_step(good) is not None


def test_nothing_follows_a_run_that_diverged(tmp_path):
    hot = Optimizer(lr=1e30)
    phases = (Phase(until=20, optimizer=hot), Phase(until=40, optimizer=hot))
    study = experiment(seeds=(1,), hot=run(20, phases=phases), calm=run(20, 40))
    store = Store(tmp_path)
    assert launch(study, store, Launch(workers=2), lambda _: None)
    plan = Plan(study, store)
    assert not plan.missing()
    states = [plan.entries[each.id].status for each in study.arms["hot"].segments(1)]
    assert states == ["diverged", "new"]
    assert plan.summary() == "4 segments: 2 finished, 1 diverged"
    frame = store.metrics(study)
    assert frame[frame["arm"] == "hot"]["step"].max() < 20  # what was measured stays


def test_seeds_share_the_cores_they_have(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)), raising=False)
    assert Launch().processes(1) == 1
    assert Launch().processes(2) == 2
    assert Launch().processes(3) == 3  # 1.5 rounds, not 2
    assert Launch().processes(8) == 2
    assert Launch(threads=2).processes(3) == 1
    assert Launch(workers=5).processes(3) == 3


def test_a_plan_tells_time_left_from_what_has_run(tmp_path):
    store = Store(tmp_path)
    launch(experiment(seeds=(1,), a=run(10)), store, Launch(workers=1), lambda _: None)
    plan = Plan(experiment(seeds=(1, 2, 3), a=run(10)), store)
    (done,) = [each for each in plan.entries.values() if each.status == "finished"]
    assert plan.seconds_left() == pytest.approx(2 * done.seconds)
    assert (
        Plan(experiment(seeds=(9,), a=run(10)), Store(Path(tmp_path / "no"))).seconds_left() is None
    )


def test_a_system_that_does_not_tell_which_cores_are_ours_has_all_of_them(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    for count, processes in ((4, 4), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        assert Launch().processes(8) == processes


class Told:
    """A worker that says something at the moment it is seen to have ended."""

    exitcode = 0

    def __init__(self, pool, *words: Progress) -> None:
        self.pool, self.words = pool, list(words)

    def is_alive(self) -> bool:
        while self.words:
            self.pool.told.put(self.words.pop(0))
        return False

    def join(self, timeout: float | None = None) -> None: ...


def test_what_a_worker_says_while_another_is_seen_off_is_heard(tmp_path):
    parent, child = run(10, 20).segments(1)
    (other,) = run(15).segments(1)
    pool, started, heard = _Pool(Store(tmp_path), Launch(), 2), [], []
    pool.told = queue.Queue()

    def start(segment):
        started.append(segment.id)
        diverged = Progress(parent.id, 7, finished=True, diverged=True)
        words = {other.id: [diverged, Progress(other.id, 15, finished=True)]}
        pool.workers[segment.id] = Told(pool, *words.get(segment.id, []))

    pool._start = start
    assert pool.run([other, parent, child], heard.append) == ""
    assert started == [other.id, parent.id]
    assert [(each.segment, each.diverged) for each in heard] == [
        (parent.id, True),
        (other.id, False),
    ]


def launched(how: Launch, study, store: Store) -> str:
    with pytest.raises(RunFailedError) as failed:
        launch(study, store, how, lambda _: None)
    return str(failed.value)


def test_a_mistake_is_told_as_its_sentence_and_an_error_in_a_task_with_its_place(
    tmp_path, monkeypatch
):
    study, store = experiment(seeds=(1,), a=run(10)), Store(tmp_path / "out")
    how = Launch(workers=1, device="nowhere")
    told = launched(how, study, store)
    assert told.startswith("--device nowhere ") and told.count("\n") == 0
    monkeypatch.setenv("GROKSCOPE_TRACEBACK", "1")
    assert launched(how, study, store).startswith("Traceback")
    monkeypatch.delenv("GROKSCOPE_TRACEBACK")
    (tmp_path / "task.py").write_text(BROKEN.replace("ZeroDivisionError", "ValueError"))
    task = CustomTask(function=f"{tmp_path / 'task.py'}:broken", arguments={"after": 0})
    told = launched(Launch(workers=1), experiment(seeds=(1,), bad=run(10, task=task)), store)
    assert told.startswith("Traceback") and "task.py" in told
