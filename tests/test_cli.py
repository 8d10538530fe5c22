"""The command line: what it shows, what it refuses, and what is there to see of a run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from grokscope import __version__, measures
from grokscope.cli import app, main
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.probe import Probe
from grokscope.runs.store import Store
from grokscope.spec import override, read_experiment, with_seeds
from made_store import POINTS, accuracies, curve, finish, made_experiment, made_state, stored

COMMANDS = typer.main.get_command(app).commands
OURS = [(name, preset) for name, entry in EXPERIMENTS.items() for preset in entry.presets]


@dataclass
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said without line ends and the lines of tables."""
        return " ".join(re.sub(r"[\u2500-\u257f]", " ", self.out).split())


Grokscope = Callable[[str], Done]


@pytest.fixture
def grokscope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Grokscope:
    """Runs a command line as the shell would, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GROKSCOPE_TRACEBACK", raising=False)

    def run(line: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["grokscope", *shlex.split(line)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, *capsys.readouterr())

    return run


# Help.


def test_every_command_and_option_says_what_it_is_for(grokscope):
    everything = grokscope("--help")
    assert everything.code == 0
    for name, command in COMMANDS.items():
        assert name in everything.words
        done = grokscope(f"{name} --help")
        assert done.code == 0
        assert command.help
        for each in command.params:
            assert each.help, f"{name} does not explain {each.name}"
            shown = each.opts[0] if each.opts[0].startswith("--") else f"{each.name} <"
            assert shown in done.words
            assert not each.required or "[required]" in done.words


def test_a_sweep_has_the_options_of_a_run_and_its_grid():
    options = {name: {option.name for option in COMMANDS[name].params} for name in COMMANDS}
    assert options["sweep"] - options["run"] == {"grid"}
    assert not options["run"] - options["sweep"]
    assert {"preset", "set_", "seeds"} <= options["show"] & options["run"]


def test_help_comes_without_a_command_and_names_the_first_step(grokscope):
    done = grokscope("")
    assert "To begin: grokscope list" in " ".join((done.out + done.err).split())


def test_help_and_lists_load_nothing_heavy():
    program = (
        "import sys\n"
        "from grokscope.cli import main\n"
        "for line in ('-h', 'run -h', '--version', 'list', 'show grokking', 'run nothing'):\n"
        "    sys.argv = ['grokscope', *line.split()]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit:\n"
        "        pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'matplotlib', 'transformers', 'pyarrow'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_version_is_that_of_the_package(grokscope):
    assert grokscope("--version") == Done(0, f"grokscope {__version__}\n", "")


# What there is.


def test_the_list_has_every_experiment_with_its_presets(grokscope):
    done = grokscope("list")
    assert done.code == 0
    cells = [[cell.strip() for cell in re.split("[│┃]", line)] for line in done.out.splitlines()]
    rows = {cell for row in cells if len(row) > 1 for cell in row[1:2]}
    assert set(EXPERIMENTS) <= rows
    for name, entry in EXPERIMENTS.items():
        asked = grokscope(f"list {name}")
        assert find_experiment(name).question in asked.words
        for preset in entry.presets:
            runs = list(find_experiment(name, preset).runs())
            steps = max(segment.phase.until for _, _, chain in runs for segment in chain)
            line = next(x for x in asked.out.splitlines() if re.match(rf"\W*{preset}\b", x))
            assert f"{len(runs)} of {steps:,} steps" in line


def test_a_smoke_test_is_called_one_where_it_is_listed_and_shown(grokscope):
    listed = grokscope("list grokking-penalties")
    assert listed.words.count("results mean nothing") == 1
    assert "smoke_test: true" in grokscope("show grokking --preset tiny").out
    assert "smoke_test: false" in grokscope("show grokking").out


# Measures.

RECORDS = getattr(measures, "records", None)


@pytest.mark.skipif(RECORDS is None, reason="grokscope.measures has no records yet")
def test_the_measures_are_listed_and_each_can_be_shown(grokscope):
    listed = grokscope("measures")
    assert listed.code == 0
    for record in RECORDS().values():
        assert re.search(rf"\W{record.name}\W", listed.out)
        shown = grokscope(f"measures {record.name}")
        for text in (record.title, record.formula, record.cost, record.source, record.note):
            assert " ".join(text.split()) in shown.words
    wrong = grokscope("measures relative_flatnes")
    assert wrong.code == 2
    assert "Did you mean relative_flatness?" in wrong.err


def test_a_list_of_what_is_not_there_says_what_is(grokscope):
    done = grokscope("list grokkin")
    assert done.code == 2
    assert "Did you mean grokking?" in done.err


@pytest.mark.parametrize(("name", "preset"), OURS)
def test_what_is_shown_is_the_experiment_and_can_be_run_from_a_file(grokscope, name, preset):
    done = grokscope(f"show {name} --preset {preset}")
    assert (done.code, done.err) == (0, "")
    Path("mine.yaml").write_text(done.out, encoding="utf-8")
    assert read_experiment(Path("mine.yaml")) == find_experiment(name, preset)
    assert grokscope("show mine.yaml") == done


def test_changes_are_shown_as_they_would_be_run(grokscope):
    done = grokscope("show grokking --set task.modulus=13 --set batch_size=32 --seeds 5,6")
    Path("mine.yaml").write_text(done.out)
    expected = override(find_experiment("grokking"), ["task.modulus=13", "batch_size=32"])
    assert read_experiment(Path("mine.yaml")) == with_seeds(expected, "5,6")


# Your own.

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
    "my_study.py:claim": "claims: there is no claim 'C71'. Did you mean C7? There are: C1",
    "my_study.py:figure": "figures: there is no figure 'outcome'. Did you mean outcomes? There are",
    "my_study.py:other_figure": "my_study.py has no 'panel'.",
    "my_study.py:contrast": "my_study.py has no 'jugde'. Did you mean judge?",
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
        "arms.suppressed.phases.0.penalties.0: measure 'nc' is none of "
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


# What has run.


@pytest.mark.parametrize("command", ["status", "report", "claims"])
def test_a_folder_without_a_run_says_how_to_start_one(grokscope, command):
    done = grokscope(f"{command} nowhere")
    assert done == Done(
        2,
        "",
        "Error: nowhere holds no run (there is no experiment.yaml); start one with: grokscope run "
        "NAME --out nowhere\n",
    )
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("command", ["status", "report", "claims"])
def test_a_damaged_folder_is_named_with_what_is_wrong(grokscope, command):
    Path("here").mkdir()
    Path("here/experiment.yaml").write_text("name: x\n")
    done = grokscope(f"{command} here")
    assert done.code == 2
    assert done.err.startswith("Error: here/experiment.yaml is not a grokscope experiment: title: ")
    assert done.err.count("\n") == 1


def test_before_anything_ran_everything_is_new(grokscope):
    Store(Path("here")).save_experiment(made_experiment(claims=("C1",), figures=("grokking",)))
    status = grokscope("status here")
    assert "2 segments: 2 new" in status.words
    assert status.words.count("0/2,000") == 2
    claims = grokscope("claims here")
    assert claims.out == "There are no claims to test: nothing has been measured yet.\n"
    assert grokscope("report here").code == 0
    assert "has not begun" in Path("here/report.html").read_text()


def test_status_tells_what_is_finished_what_goes_on_what_is_new_and_how_long_it_takes(grokscope):
    asked = made_experiment(1000, 2000, seeds=(1, 2, 3, 4), title="[b]old", arms=("a [x]",))
    store = Store(Path("here"))
    store.save_experiment(asked)
    whole, stopped, diverged, _ = (chain for _, _, chain in asked.runs())
    finish(store, whole[0], accuracies(), seconds=100.0)
    store.checkpoint(stopped[0], made_state(250), accuracies(), 25.0)
    finish(store, diverged[0], accuracies(), step=500, seconds=50.0, diverged=True)
    done = grokscope("status here")
    assert "8 segments: 1 finished, 1 diverged, 1 to resume, 4 new" in done.words
    for segment, state in (
        (whole[0], "finished 1,000/1,000 1 min 40 s"),
        (whole[1], "new 1,000/2,000"),
        (stopped[0], "stopped 250/1,000"),
        (diverged[0], "diverged 500/1,000 50 s"),
        (diverged[1], "cut off"),
    ):
        assert f"{segment.id} {state}" in done.words
    assert "a [x], seed 1" in done.words
    # 1,500 steps took 150 s; 1,000 + 750 + 1,000 + 1,000 + 1,000 steps are left.
    assert "about 7 min 55 s of work left for one worker" in done.words


def test_claims_are_answered_from_what_is_stored(grokscope):
    # NCC falls at 120 to 160 of 2,000 steps, before memorisation at 300, and long before validation
    # accuracy moves.
    asked = made_experiment(claims=("C1",), seeds=(1, 2, 3))
    rows = {}
    for seed in asked.seeds:
        fall = [40.0 if step < 100 + 20 * seed else 2.0 for step in POINTS]
        rows[seed] = [*accuracies(), *curve("train", "ncc", fall)]
    stored(Path("here"), asked, rows)
    done = grokscope("claims here")
    assert done.code == 0
    assert re.search(r"C1 NCC ✓ supported .* 3 ", done.words)
    assert "C1 In grokking NCC falls during memorisation" in done.words


def test_an_experiment_may_claim_nothing(grokscope):
    stored(Path("here"), made_experiment(seeds=(1,)), {1: accuracies()})
    done = grokscope("claims here")
    assert done.out == "There are no claims to test: the experiment names none.\n"


def test_a_report_says_where_it_is(grokscope):
    stored(Path("here [1]"), made_experiment(seeds=(1,)), {1: accuracies()})
    done = grokscope("report 'here [1]'")
    path = Path("here [1]/report.html").resolve()
    assert done == Done(0, f"Report: {path.as_uri()}\n", "")
    assert "Is it read as it was written?" in path.read_text(encoding="utf-8")


# Measuring.

MODELS = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(12, 4, generator=generator), torch.arange(12) % 3)]
"""


def test_measuring_prints_what_the_probe_says(grokscope):
    Path("own_nets.py").write_text(MODELS)
    names: dict[str, Callable[[], object]] = {}
    exec(MODELS, names)
    expected = str(Probe(names["model"]()).measure(names["batches"]()))
    done = grokscope("measure --model own_nets.py:model --data own_nets:batches")
    assert done == Done(0, f"{expected}\n", "")


def test_measuring_needs_model_and_data(grokscope):
    assert "Missing option '--model'" in grokscope("measure").err
    done = grokscope("measure --model nowhere --data nowhere")
    assert done.code == 2
    assert done.err.startswith("Error: there is no nowhere/config.json; --model is a folder that")
    assert done.err.count("\n") == 1
