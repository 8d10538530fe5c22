"""Many segments on one machine: in order, each once, and nothing lost when one fails."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from grokscope.runs.jobs import Progress, Throttle
from grokscope.runs.launch import RunFailedError, RunOptions, launch
from grokscope.runs.options import Place
from grokscope.runs.plan import Plan
from grokscope.runs.scheduler import Scheduler, run_all
from grokscope.runs.store import Store
from grokscope.spec import CustomTask, Optimizer, Phase
from small_runs import BROKEN, experiment, run


def test_arms_that_begin_alike_run_their_beginning_once(tmp_path):
    tail = Phase(until=30, optimizer=Optimizer(lr=1e-3))
    forked = run(10, 30).model_copy(update={"phases": (run(10).phases[0], tail)})
    study = experiment(seeds=(1, 2), short=run(10), one=run(10, 30), other=forked)
    store, heard = Store(tmp_path), []
    assert launch(study, store, RunOptions(workers=2), heard.append)
    folders = [each for each in (tmp_path / "segments").iterdir() if each.is_dir()]
    assert len(folders) == 2 * 3  # a prefix and two endings for each seed
    finished = [each.segment for each in heard if each.finished]
    assert len(finished) == len(set(finished)) == 6
    for _, _, chain in study.runs():  # parents are finished before their children begin
        for parent, child in pairwise(each.id for each in chain):
            begun = next(place for place, each in enumerate(heard) if each.segment == child)
            assert Progress(parent, 10, finished=True) in heard[:begun]


def test_what_is_finished_is_not_run_again_and_the_rest_is(tmp_path):
    store = Store(tmp_path)
    launch(experiment(seeds=(1,), a=run(10)), store, RunOptions(workers=1), lambda _: None)
    wider = experiment(seeds=(1, 2), a=run(10))
    assert len(Plan(wider, store).missing()) == 1
    heard = []
    launch(wider, store, RunOptions(workers=2), heard.append)
    assert len({each.segment for each in heard}) == 1
    assert Plan(wider, store).summary() == "2 segments: 2 finished"


def test_a_segment_that_fails_is_named_and_the_others_keep_their_work(tmp_path, monkeypatch):
    (tmp_path / "task.py").write_text(BROKEN)
    task = CustomTask(function=f"{tmp_path / 'task.py'}:broken", arguments={"after": 25})
    study = experiment(seeds=(1,), good=run(50_000), bad=run(50_000, task=task))
    store = Store(tmp_path / "out")
    with pytest.raises(RunFailedError, match="the loss is broken"):
        launch(study, store, RunOptions(workers=2), lambda _: None)
    good = study.arms["good"].segments(1)[0]
    assert store.checkpoint_step(good) is not None


def test_nothing_follows_a_run_that_diverged(tmp_path):
    hot = Optimizer(lr=1e30)
    phases = (Phase(until=20, optimizer=hot), Phase(until=40, optimizer=hot))
    study = experiment(seeds=(1,), hot=run(20, phases=phases), calm=run(20, 40))
    store = Store(tmp_path)
    assert launch(study, store, RunOptions(workers=2), lambda _: None)
    plan = Plan(study, store)
    assert not plan.missing()
    states = [plan.entries[each.id].status for each in study.arms["hot"].segments(1)]
    assert states == ["diverged", "new"]
    assert plan.summary() == "4 segments: 2 finished, 1 diverged"
    frame = store.metrics(study)
    assert frame[frame["arm"] == "hot"]["step"].max() < 20  # what was measured stays


def test_seeds_share_the_cores_they_have(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)), raising=False)
    assert RunOptions().worker_count(1) == 1
    assert RunOptions().worker_count(2) == 2
    assert RunOptions().worker_count(3) == 3  # 1.5 rounds, not 2
    assert RunOptions().worker_count(8) == 2
    assert RunOptions(threads=2).worker_count(3) == 1
    assert RunOptions(workers=5).worker_count(3) == 3


def test_a_plan_tells_time_left_from_what_has_run(tmp_path):
    store = Store(tmp_path)
    launch(experiment(seeds=(1,), a=run(10)), store, RunOptions(workers=1), lambda _: None)
    plan = Plan(experiment(seeds=(1, 2, 3), a=run(10)), store)
    (done,) = [each for each in plan.entries.values() if each.status == "finished"]
    assert plan.estimate().seconds == pytest.approx(2 * done.seconds)
    elsewhere = Plan(experiment(seeds=(9,), a=run(10)), Store(tmp_path / "no"))
    assert elsewhere.estimate().seconds is None


def test_a_system_that_does_not_tell_which_cores_are_ours_has_all_of_them(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    for count, processes in ((4, 4), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        assert RunOptions().worker_count(8) == processes


class OneSlot:
    """A executor of one place after the other, that says all at the moment a job is seen to end."""

    def __init__(self, words: dict[str, list[Progress]]) -> None:
        self.words, self.started, self.under_way = words, [], []

    @property
    def free_slots(self) -> int:
        return 1 - len(self.under_way)

    def submit(self, job) -> None:
        self.started += [segment.id for segment in job]
        self.under_way.append(job)

    def poll(self) -> list[Progress]:
        return [word for job in self.under_way for each in job for word in self.words[each.id]]

    def done(self) -> list:
        gone, self.under_way = self.under_way, []
        return gone


def test_what_follows_a_segment_that_diverged_is_not_started(tmp_path):
    parent, child = run(10, 20).segments(1)
    (other,) = run(15).segments(1)
    executor, heard = (
        OneSlot(
            {
                other.id: [Progress(other.id, 15, finished=True)],
                parent.id: [Progress(parent.id, 7, finished=True, diverged=True)],
            }
        ),
        [],
    )
    scheduler = Scheduler([other, parent, child], Store(tmp_path))
    run_all(scheduler, executor, heard.append, heard.append)
    assert executor.started == [other.id, parent.id]
    assert [(each.segment, each.diverged) for each in heard] == [
        (other.id, False),
        (parent.id, True),
    ]


def test_a_segment_that_turns_out_to_be_busy_is_tried_again(tmp_path):
    (one,) = run(10).segments(1)
    answers = iter([[Progress(one.id, 0, busy=True)], [Progress(one.id, 10, finished=True)]])

    class Busy(OneSlot):
        def poll(self) -> list[Progress]:
            return next(answers) if self.under_way else []

    executor, heard = Busy({}), []
    run_all(Scheduler([one], Store(tmp_path)), executor, heard.append, lambda _: None)
    assert executor.started == [one.id, one.id]
    assert [each.finished for each in heard] == [True]


def test_a_segment_that_a_later_job_runs_is_not_forgotten_with_an_earlier_one(tmp_path):
    """It was busy when the first job came to it; its second job is under way when that ends."""
    first, second = (run(10).segments(seed)[0] for seed in (1, 2))
    scheduler = Scheduler([first, second], Store(tmp_path), RunOptions(replicas=2))
    (together,), _ = scheduler.next(1)
    assert [each.id for each in together] == [first.id, second.id]
    scheduler.update(Progress(second.id, 0, busy=True))
    scheduler.checked.clear()
    (later,), _ = scheduler.next(1)
    assert later == (second,)
    scheduler.job_done(together)
    assert not scheduler.is_done
    scheduler.job_done(later)
    assert scheduler.is_done


def test_mere_steps_of_every_segment_get_through():
    heard = []
    throttle = Throttle(heard.append)
    for step in (10, 20):
        for name in "abc":
            throttle(Progress(name, step))
    assert heard == [Progress(name, 10) for name in "abc"]


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    how = RunOptions()
    assert how.worker_count(9) == 4 and how.worker_count(2) == 2
    assert [how.place(k, 4) for k in range(4)] == [Place(f"cuda:{k}", 0.8) for k in range(4)]
    assert how.place(5, 8) == Place("cuda:1", 0.4)
    assert RunOptions(device="cuda:2").place(1, 2) == Place("cuda:2", 0.4)
    assert RunOptions(device="cpu").place(1, 2) == Place("cpu", 0.4)
    assert how.replicas_per_job == 32 and RunOptions(device="cpu").replicas_per_job == 1


def test_jobs_are_of_one_shape_and_leave_no_place_empty(tmp_path):
    store = Store(tmp_path)
    alike = [run(10).segments(seed)[0] for seed in range(5)]
    others = [run(12).segments(seed)[0] for seed in range(2)]

    def sizes(segments, replicas: int, free: int) -> list[int]:
        jobs, _ = Scheduler(segments, store, RunOptions(replicas=replicas)).next(free)
        assert all(len({each.phase.until for each in job}) == 1 for job in jobs)
        return [len(job) for job in jobs]

    assert sizes(alike, 1, 2) == [1, 1]
    assert sizes(alike, 8, 1) == [5]
    assert sizes(alike, 8, 2) == [3, 2]
    assert sizes(alike, 2, 9) == [1] * 5
    assert sizes(alike + others, 8, 1) == [5]
    assert sizes(alike + others, 8, 2) == [4, 1]
    assert sizes(alike + others, 3, 9) == [1] * 7
    assert sizes(alike, 8, 0) == []


WITNESS = """
import os
import torch
from pathlib import Path
from grokscope import Split, Task

def witness(seed: int, die: int = -1) -> Task:
    \"\"\"Writes down which process it is in; in one seed it ends that process.\"\"\"
    with Path(__file__).with_name("log").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    if seed == die:
        os.kill(os.getpid(), 9)
    data = Split(torch.randn(40, 4), torch.arange(40) % 4)
    return Task(torch.nn.Linear(4, 4), data, data)
"""


def witnesses(folder: Path, **arguments: int):
    (folder / "task.py").write_text(WITNESS)
    task = CustomTask(function=f"{folder / 'task.py'}:witness", arguments=arguments)
    return experiment(seeds=(1, 2, 3), a=run(10, task=task))


def test_a_process_takes_one_job_after_the_other(tmp_path):
    study = witnesses(tmp_path)
    assert launch(study, Store(tmp_path / "out"), RunOptions(workers=1), lambda _: None)
    pids = (tmp_path / "log").read_text().split()
    assert len(pids) == 3
    assert len(set(pids)) == 1


def test_a_process_that_is_killed_is_named_by_its_segment(tmp_path):
    study, store = witnesses(tmp_path, die=2), Store(tmp_path / "out")
    told = launched(tmp_path, study, store)
    dead = study.arms["a"].segments(2)[0]
    assert f"segment {dead.id} was ended by signal 9" in told
    assert store.outcome(study.arms["a"].segments(1)[0]) is not None


def launched(folder: Path, study, store: Store) -> str:
    with pytest.raises(RunFailedError) as failed:
        launch(study, store, RunOptions(workers=1), lambda _: None)
    return str(failed.value)


def test_a_mistake_is_told_as_its_sentence_and_an_error_in_a_task_with_its_place(
    tmp_path, monkeypatch
):
    store = Store(tmp_path / "out")
    launch(experiment(seeds=(1,), a=run(10)), store, RunOptions(workers=1), lambda _: None)
    (state,) = (tmp_path / "out").rglob("state.safetensors")
    state.write_bytes(b"")
    study = experiment(seeds=(1,), a=run(10, 20))
    told = launched(tmp_path, study, store)
    assert told.startswith(f"{state} is damaged") and told.count("\n") == 0
    monkeypatch.setenv("GROKSCOPE_TRACEBACK", "1")
    assert launched(tmp_path, study, store).startswith("Traceback")
    monkeypatch.delenv("GROKSCOPE_TRACEBACK")
    (tmp_path / "task.py").write_text(BROKEN.replace("ZeroDivisionError", "ValueError"))
    task = CustomTask(function=f"{tmp_path / 'task.py'}:broken", arguments={"after": 0})
    told = launched(tmp_path, experiment(seeds=(1,), bad=run(10, task=task)), store)
    assert told.startswith("Traceback") and "task.py" in told
