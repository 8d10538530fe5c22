"""Experiments, tasks and penalties of a user on the command line, and mistakes in any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from grokscope.spec import read_experiment

OWN = """
from grokscope.interventions import Penalty
from grokscope.spec import Contrast, CustomTask, Experiment, Phase, Run

def make(preset="default"):
    until = {"default": 10, "long": 1000}[preset]
    task = CustomTask(function=f"{__file__}:task", arguments={"width": 8})
    run = Run(task=task, phases=(Phase(until=until),))
    return Experiment(name="own", preset=preset, title="Own", question="?", arms={"a": run})

experiment = make()

def plain():
    return experiment

def task(width):
    pass

def wrong(preset):
    return Experiment(name="Own!", title="Own", question="?", arms={})

def broken(preset):
    return {}[preset]

number = 3

def named(**names):
    return experiment.model_copy(update=names)

claim = named(claims=("C71",))
figure = named(figures=("outcome",))
other_figure = named(figures=("my_study.py:panel",))
contrast = named(contrasts=(Contrast(claim="my_study.py:jugde", arm="a", against="a"),))

def judge(runs):
    pass

def penalised(measure):
    phase = Phase(until=10, penalties=(Penalty(measure=measure, weight=1.0),))
    return named(arms={"pushed": Run(task=experiment.arms["a"].task, phases=(phase,))})

def squares(features, logits):
    return features.square().mean()

penalty = penalised("my_study.py:sqares")
narrow_penalty = penalised("my_study.py:squares")
number_penalty = penalised("my_study.py:number")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "my_study.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    ("line", "until"),
    [
        ("my_study.py:experiment", 10),
        ("my_study.py:plain", 10),
        ("my_study.py:make", 10),
        ("my_study.py:make --preset long", 1000),
        ("my_study:experiment", 10),
    ],
)
def test_your_own_is_an_experiment_or_makes_one(grokscope, own, line, until):
    done = grokscope(f"show {line}")
    assert (done.code, done.err) == (0, "")
    Path("shown.yaml").write_text(done.out)
    shown = read_experiment(Path("shown.yaml"))
    assert shown.arms["a"].phases[-1].until == until
    assert shown.arms["a"].task.arguments == {"width": 8}


REFUSED = {
    "grokin": ("there is no experiment 'grokin'. Did you mean grokking? There are: grokking, "),
    "grokking --preset papre": (
        "grokking has no preset 'papre'. Did you mean paper? It has: default, two-tokens, paper, "
        "tiny"
    ),
    "grokking --set task.modulo=5": (
        "--set task.modulo=5: arms.grokking.task has no 'modulo'. Did you mean modulus? It has: "
    ),
    "grokking --set task.heads=5": (
        "--set task.heads=5: arms.grokking.task: heads=5 must divide width=128"
    ),
    "grokking --seeds 1,1": "--seeds 1,1: settings: seeds must be distinct, but are 1, 1",
    "my_study.py": "there is no experiment 'my_study.py'.",
    "study.py:experiment": "there is no file study.py",
    "my_study.py:experimnt": "my_study.py has no 'experimnt'. Did you mean experiment? It has: ",
    "my_study.py:number": "my_study.py:number is of type int, not a grokscope Experiment",
    "my_study.py:experiment --preset long": (
        "my_study.py:experiment is one experiment and has no preset 'long'"
    ),
    "my_study.py:plain --preset long": "my_study.py:plain is one experiment and has no preset",
    "my_study.py:wrong": "my_study.py:wrong: name: String should match pattern '^[a-z0-9]",
    "my_study.py:broken": "my_study.py:broken failed: KeyError: 'default'",
    "my_study.py:experiment --set task.arguments.depth=2": "task.arguments do not fit ",
    "my_study.py:experiment --set task.function=my_study.py:tusk": (
        "my_study.py has no 'tusk'. Did you mean task?"
    ),
    "my_study.py:experiment --set task.function=my_study.py:number": (
        "my_study.py:number is int, not a function"
    ),
    "my_study.py:claim": "claims.0 of own: there is no claim 'C71'. Did you mean C7? There are: C1",
    "my_study.py:figure": "figures.0 of own: there is no figure 'outcome'. Did you mean outcomes?",
    "my_study.py:other_figure": "figures.0 of own: my_study.py has no 'panel'.",
    "my_study.py:contrast": (
        "contrasts.0.claim of own: my_study.py has no 'jugde'. Did you mean judge?"
    ),
    "my_study.py:penalty": (
        "arms.pushed.phases.0.penalties.0.measure: my_study.py has no 'sqares'. Did you mean squar"
    ),
    "my_study.py:narrow_penalty": (
        "arms.pushed.phases.0.penalties.0.measure: my_study.py:squares must take (features, logits,"
    ),
    "my_study.py:number_penalty": (
        "arms.pushed.phases.0.penalties.0.measure: my_study.py:number is of type int, not a functi"
    ),
    "nowhere.yaml": "there is no file nowhere.yaml; grokscope show NAME > nowhere.yaml writes one",
    "grokking --out my_study.py": "my_study.py is not a directory; choose another with --out",
    "grokking --device cuda:99": "--device cuda:99 can't be used here (",
    "grokking --device gpu": "--device gpu can't be used here (",
    "suppress-collapse --set task.source=nowhere": "there is no folder nowhere; give a folder that",
    "suppress-collapse --preset tiny --set task.train_examples=5000": (
        "task.train_examples=5000 is more than the 1437 images there are to draw from"
    ),
    "suppress-collapse --set phases.0.penalties.0.weight=1": (
        "--set phases.0.penalties.0.weight=1: arms.baseline.phases.0.penalties has no '0'. It is "
    ),
    "suppress-collapse --set arms.suppressed.phases.0.penalties.0.measure=nc": (
        "--set arms.suppressed.phases.0.penalties.0.measure=nc: "
        "arms.suppressed.phases.0.penalties.0: 'nc' is not a mea"
    ),
}


@pytest.mark.parametrize(("line", "problem"), REFUSED.items(), ids=REFUSED)
def test_a_mistake_is_one_line_and_nothing_is_written(grokscope, own, line, problem):
    done = grokscope(f"run {line}")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith(f"Error: {problem}")
    assert done.err.count("\n") == 1
    assert [each.name for each in own.parent.iterdir() if each.name != "__pycache__"] == [own.name]


@pytest.mark.parametrize(
    "line", ["run", "run grokking --workers 0", "sing", "run grokking --sets a"]
)
def test_a_wrong_option_is_refused_with_the_way_to_help(grokscope, line):
    done = grokscope(line)
    assert done.code == 2
    assert "-h' for help" in done.err
    assert not list(Path().iterdir())


def test_whoever_asks_for_it_gets_the_whole_traceback(grokscope, monkeypatch):
    monkeypatch.setenv("GROKSCOPE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="there is no experiment 'nothing'"):
        grokscope("run nothing")
