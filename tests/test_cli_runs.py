"""Runs from the command line, from the first step to the report, with Ctrl-C in between."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from grokscope.cli import main
from grokscope.experiments import find_experiment
from grokscope.report.figures import list_figures
from grokscope.runs.store import Store

OWN = '''
"""Clusters that a small network tells apart; each step waits while there is a file named hold."""

import time
from pathlib import Path

import torch
from torch import nn

from grokscope import Split, Task
from grokscope.spec import CustomTask, Experiment, Observation, Optimizer, Phase, Run


def experiment(preset):
    until = {"default": 60, "long": 400}[preset]
    run = Run(
        task=CustomTask(function="my_study.py:clusters", arguments={"classes": 3}),
        batch_size=16,
        phases=(Phase(until=until, optimizer=Optimizer(lr=1e-2)),),
        observation=Observation(per_decade=3, max_gap=20),
    )
    return Experiment(
        name="clusters", preset=preset, title="Clusters [sic]", question="Are they told apart?",
        arms={"plain [0.1]": run}, seeds=(3,),
    )


def clusters(classes, seed, width=16):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % classes
    centres = 10 * torch.eye(classes)
    inputs = centres[labels] + torch.randn(60, classes, generator=generator)
    model = nn.Sequential(nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, classes))
    train, validation = Split(inputs[:40], labels[:40]), Split(inputs[40:], labels[40:])
    return Task(model, train, validation, loss=patient_loss)


def patient_loss(logits, labels):
    if Path("hold").exists():
        time.sleep(0.05)
    return nn.functional.cross_entropy(logits, labels)


def no_task(classes, seed):
    return "a task"


def failing(classes, seed):
    return 1 / 0
'''


@pytest.fixture(scope="module", autouse=True)
def compiled_once(pytestconfig: pytest.Config) -> Iterator[None]:
    """Lets processes share what the first has compiled; it takes half of their time."""
    cache = getattr(pytestconfig, "cache", None)
    with pytest.MonkeyPatch.context() as environment:
        if cache is not None:
            environment.setenv("PYTHONPYCACHEPREFIX", str(cache.mkdir("compiled")))
            environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_study.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # references extend it
    return tmp_path


def grokscope(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["grokscope", *shlex.split(line)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def stored_bytes(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file of each segment was written, and what it holds."""
    files = [path for path in (folder / "segments").rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def one_curve(folder: Path, split: str, measure: str) -> pd.Series:
    store = Store(folder)
    metrics = store.metrics(store.experiment())
    rows = metrics[(metrics["split"] == split) & (metrics["measure"] == measure)]
    return rows.set_index("step")["value"]


def test_the_tiny_preset_runs_from_the_first_step_to_the_report(here, monkeypatch, capsys):
    assert grokscope("run grokking --preset tiny --seeds 7", monkeypatch) == 0
    said = capsys.readouterr().out
    folder = Path("runs/grokking-tiny")
    assert "1 segment: 1 new" in said
    assert "step 60 of 60" in said
    assert (folder / "report.html").resolve().as_uri() in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    experiment = find_experiment("grokking", "tiny")
    assert experiment.question in page
    assert "grokscope run grokking --preset tiny --seeds 7" in page
    # It neither memorises nor generalises in 60 steps: some figures say why they are not there.
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    missing = {name for name in list_figures() if f"The figure {name} is left out" in page}
    assert "grokking" in drawn
    assert drawn | missing == set(experiment.figures)
    assert not drawn & missing
    assert {path.stem for path in (folder / "figures").glob("*.pdf")} == drawn
    points = experiment.arms["grokking"].observation.points(60)
    assert list(one_curve(folder, "train", "accuracy").index) == points


def test_an_image_experiment_runs_to_its_report(here, monkeypatch, capsys):
    assert grokscope("run suppress-collapse --preset tiny", monkeypatch) == 0
    assert "(3 segments: 3 new)" in capsys.readouterr().out
    folder = Path("runs/suppress-collapse-tiny")
    store = Store(folder)
    metrics = store.metrics(store.experiment())
    assert set(metrics["arm"]) == set(store.experiment().arms)
    penalty = metrics[metrics["measure"] == "penalty_ncc"]
    assert set(penalty["arm"]) == {"suppressed", "suppressed, memory"}
    assert (penalty["value"] > 0).all()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "so no claim is judged" in page  # the preset is a smoke test
    assert "accuracies" in {path.stem for path in (folder / "figures").glob("*.png")}


def test_your_own_task_is_trained_and_run_again_does_nothing_new(here, monkeypatch, capsys):
    assert grokscope("run my_study.py:experiment --out out", monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.startswith("Clusters [sic] (1 segment: 1 new) in out\n")
    assert "plain [0.1], seed 3  step 60 of 60" in said
    folder = Path("out")
    accuracy = one_curve(folder, "validation", "accuracy")
    assert accuracy.iloc[-1] == 1.0  # ten standard deviations apart
    assert accuracy.iloc[0] < 1.0
    first = stored_bytes(folder)
    assert grokscope("run my_study.py:experiment --out out", monkeypatch) == 0
    assert "(1 segment: 1 finished)" in capsys.readouterr().out
    assert stored_bytes(folder) == first
    # The report says how it was run; the file of its settings says everything, too.
    page = (folder / "report.html").read_text()
    assert "grokscope run my_study.py:experiment --out out" in page
    assert grokscope("run out/experiment.yaml --out out", monkeypatch) == 0
    assert stored_bytes(folder) == first
    assert grokscope("status out", monkeypatch) == 0
    assert "finished" in capsys.readouterr().out
    # Reading claims and status writes nothing; a second run alongside is remembered.
    command = Store(folder).command()
    assert command == {"command": "grokscope run out/experiment.yaml --out out", "beside": None}
    shutil.copytree("out", "other")
    assert grokscope("report out --beside other", monkeypatch) == 0
    beside = Store(folder).beside()
    assert beside is not None and beside.folder == Path("other").resolve()
    assert Store(folder).command()["command"] == command["command"]


def test_a_task_that_fails_is_told_in_the_last_line_below_where_it_did(here, monkeypatch, capsys):
    line = "run my_study.py:experiment --out out --set task.function=my_study.py:failing"
    assert grokscope(line, monkeypatch) == 2
    *trace, last = capsys.readouterr().err.strip().splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert "my_study.py" in "".join(trace) and "    return 1 / 0" in trace
    assert last == "Error: ZeroDivisionError: division by zero"


def test_a_task_that_is_none_is_told_in_one_line(here, monkeypatch, capsys):
    line = "run my_study.py:experiment --out out --set task.function=my_study.py:no_task"
    assert grokscope(line, monkeypatch) == 2
    told = capsys.readouterr().err
    assert told == "Error: my_study.py:no_task returned str; it must return a grokscope Task\n"


def test_a_run_that_is_interrupted_says_how_to_go_on_and_goes_on(here, monkeypatch, capsys):
    Path("hold").touch()
    line = "run my_study.py:experiment --preset long --set 'batch_size=20' --workers 1"
    program = [sys.executable, "-c", "from grokscope.cli import main; main()", *shlex.split(line)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline(), process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    assert "1 new" in first[0]
    assert "step 0 of 400" in first[1]
    assert process.returncode == 130
    assert complained == ""
    *_, told, command = said.strip().splitlines()
    assert told == "Stopped; everything up to here is kept. To resume, run this again:"
    assert command.strip() == f"grokscope {shlex.join(shlex.split(line))}"

    folder = Path("runs/clusters-long")
    assert not (folder / "report.html").exists()
    before = one_curve(folder, "train", "loss")
    assert grokscope(f"status {folder}", monkeypatch) == 0
    assert "1 segment: 1 to resume" in capsys.readouterr().out

    Path("hold").unlink()
    assert grokscope(command.strip().removeprefix("grokscope "), monkeypatch) == 0
    assert "1 to resume" in capsys.readouterr().out
    after = one_curve(folder, "train", "loss")
    run = find_experiment("my_study.py:experiment", "long").arms["plain [0.1]"]
    assert list(after.index) == run.observation.points(400)
    assert 1 <= len(before) < len(after)
    pd.testing.assert_series_equal(after.iloc[: len(before)], before)
    assert (folder / "report.html").is_file()
