"""The command line: what it shows, what it refuses, and what is there to see of a run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from command_line import Done
from grokscope import __version__
from grokscope.cli import app
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.measures import records
from grokscope.probe import Probe
from grokscope.runs.store import Store
from grokscope.spec import override, read_experiment, with_seeds
from made_store import POINTS, accuracies, curve, finish, made_experiment, made_state, stored

COMMANDS = typer.main.get_command(app).commands
OURS = [(name, preset) for name, entry in EXPERIMENTS.items() for preset in entry.presets]


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


def test_the_measures_are_listed_and_each_can_be_shown(grokscope):
    listed = grokscope("measures")
    assert listed.code == 0
    for record in records().values():
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
    assert "not started" in Path("here/report.html").read_text()


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
        (stopped[0], "to resume 250/1,000"),
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
    assert "C1 In a network that memorises first" in done.words


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
    assert done.err.startswith("Error: nowhere/config.json does not exist; --model takes a folder")
    assert done.err.count("\n") == 1
