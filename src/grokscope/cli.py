"""The command line: each command parses, calls one thing and says one thing.

Whatever needs torch is imported inside the command that uses it: ``--help`` must be quick.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

if TYPE_CHECKING:
    from grokscope.runs.store import Store
    from grokscope.spec import Experiment

app = typer.Typer(
    name="grokscope",
    help="What does a network need in order to generalise? Measure, intervene, and see.",
    epilog="To begin: grokscope list. Errors are one line; GROKSCOPE_TRACEBACK=1 shows all of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)

Name = Annotated[
    str,
    typer.Argument(help="An experiment of grokscope list; path/to/file.py:name; or a YAML file."),
]
Folder = Annotated[Path, typer.Argument(help="The folder of a run (its --out).")]
Preset = Annotated[str, typer.Option(help="A variant of the experiment; grokscope list has them.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a setting, e.g. task.modulus=53; can be repeated. grokscope show has them.",
    ),
]
Seeds = Annotated[str | None, typer.Option(help="Seeds, separated by commas: 1,42,15213")]
On = Annotated[
    Literal["local", "ray"], typer.Option(help="Run on this machine, or on a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(help="The Ray cluster: HOST:PORT or auto; default: start one on this machine."),
]
Beside = Annotated[
    Path | None,
    typer.Option(help="Another run, drawn beside; default FOLDER-paper, if there is one."),
]


def _version(asked: bool) -> None:
    if asked:
        from grokscope import __version__

        print(f"grokscope {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of no command; the help text is that of ``app``."""


@app.command("list")
def list_experiments(
    name: Annotated[
        str | None, typer.Argument(help="An experiment: its presets, their size and duration.")
    ] = None,
) -> None:
    """List the experiments, or the presets of one."""
    from grokscope.console import entry_table, experiments_table
    from grokscope.experiments import EXPERIMENTS, find_experiment

    if name is not None:
        find_experiment(name)  # says what there is, where this one is not
        console.print(entry_table(name, EXPERIMENTS[name]))
        return
    console.print(experiments_table(EXPERIMENTS))
    console.print(
        "Presets:   grokscope list NAME\n"
        "Try one:   grokscope run NAME --preset tiny\n"
        "Settings:  grokscope show NAME --preset PRESET\n"
        "Your own:  grokscope run path/to/file.py:name"
    )


@app.command()
def show(name: Name, preset: Preset = "default", set_: Sets = None, seeds: Seeds = None) -> None:
    """Show an experiment's settings; every path in them can be changed with --set."""
    from grokscope.spec import to_yaml

    print(to_yaml(_experiment(name, preset, set_, seeds)), end="")


@app.command()
def run(
    name: Name,
    preset: Preset = "default",
    set_: Sets = None,
    seeds: Seeds = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; default runs/NAME or runs/NAME-PRESET.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at once; default: by cores.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of work lost at most if a process is killed.")
    ] = 30.0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1; auto: CUDA where there is any.")
    ] = "auto",
    on: On = "local",
    address: Address = None,
    beside: Beside = None,
) -> None:
    """Run what is missing of an experiment, then write its report. Ctrl-C is safe."""
    experiment = _experiment(name, preset, set_, seeds)
    variant = "" if experiment.preset == "default" else f"-{experiment.preset}"
    folder = out or Path("runs") / f"{experiment.name}{variant}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name another with --out")
    from grokscope.console import SegmentBars
    from grokscope.runs.launch import Launch, launch
    from grokscope.runs.plan import Plan
    from grokscope.runs.store import Store
    from grokscope.runs.worker import find_device
    from grokscope.tasks import check_task

    how = Launch(workers, threads, checkpoint_seconds, device, on=on, address=address)
    if on == "local":
        find_device(device)
    if beside:
        Store(beside).experiment()  # not there is better known before the work than after it
    store = Store(folder)
    if out is None and _replaces(experiment, store):
        raise ValueError(
            f"{folder} holds a run with other settings, whose report would be replaced; "
            "name a folder with --out"
        )
    plan = Plan(experiment, store)
    tasks = {each.run.task.model_dump_json(): each.run.task for each in plan.missing()}
    for task in tasks.values():
        check_task(task)
    console.print(escape(f"{experiment.title} ({plan.summary()}) in {folder}"), soft_wrap=True)
    try:
        with SegmentBars(plan, console) as bars:
            launch(experiment, store, how, bars)
    except KeyboardInterrupt:
        console.print("\nStopped; everything up to here is kept. To go on, run this again:")
        console.print(escape(f"  {_command_line()}"), soft_wrap=True)
        raise typer.Exit(130) from None
    _write_report(folder, beside)


@app.command()
def status(out: Folder) -> None:
    """Show what has run, what is left and how long it will take."""
    from grokscope.console import plan_table
    from grokscope.runs.plan import Plan
    from grokscope.runs.store import Store

    store = Store(out)
    console.print(plan_table(Plan(store.experiment(), store)))


@app.command()
def report(out: Folder, beside: Beside = None) -> None:
    """Write report.html and its figures from what has run."""
    _write_report(out, beside)


@app.command()
def claims(out: Folder) -> None:
    """Say which claims hold in a run, with effect, interval and seeds."""
    from grokscope.console import claims_table
    from grokscope.report.study import claims_of
    from grokscope.runs.store import Store

    store = Store(out)
    experiment = store.experiment()
    metrics = store.metrics(experiment)
    found = claims_of(experiment, metrics)
    if not found:
        why = "nothing has been measured yet" if metrics.empty else "the experiment names none"
        console.print(f"There are no claims to test: {why}.")
        return
    console.print(claims_table(found))
    for each in found:
        console.print(f"[bold]{each.claim}[/bold] {escape(each.statement)}", soft_wrap=True)
        console.print(escape(f"   {each.headline.reason}"), soft_wrap=True)
        if each.contexts:
            contexts = "; ".join(each.contexts)
            console.print(f"   Also looked at ({contexts}): see report.html.", soft_wrap=True)


@app.command()
def measure(
    model: Annotated[
        str,
        typer.Option(
            help="A folder that save_pretrained wrote, or file.py:function that returns a model."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A folder of Parquet files, or file.py:function that returns batches "
            "(inputs, labels)."
        ),
    ],
    split: Annotated[str, typer.Option(help="Which split of the folder.")] = "test",
    head: Annotated[str | None, typer.Option(help="Name of the head, if it isn't found.")] = None,
    max_examples: Annotated[
        int, typer.Option(min=2, help="Use so many rows, spread over the split.")
    ] = 2048,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of the folder at a time.")] = 64,
) -> None:
    """Measure the geometry of a saved model's head on a data set."""
    from grokscope.integrations.huggingface import measure_saved

    measurement = measure_saved(
        model, data, head=head, split=split, max_examples=max_examples, batch_size=batch_size
    )
    print(measurement)


def main() -> None:
    """Run the command line; a mistake of the user's is a sentence, not a traceback."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("GROKSCOPE_TRACEBACK"):
            raise
        said = str(error).strip()
        trace = ""
        if said.startswith("Traceback"):  # of a process that ran a segment: the cause comes last
            trace, _, said = said.rpartition("\n")
        message = Text.assemble((f"{trace}\n" if trace else "", "dim"), ("Error: ", "red"), said)
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)
        sys.exit(2)


def _experiment(
    name: str, preset: str, assignments: list[str] | None, seeds: str | None
) -> Experiment:
    """The experiment that name and options describe, validated."""
    from grokscope.experiments import find_experiment
    from grokscope.spec import override, with_seeds

    experiment = find_experiment(name, preset)
    experiment = override(experiment, assignments or [])
    return experiment if seeds is None else with_seeds(experiment, seeds)


def _replaces(experiment: Experiment, store: Store) -> bool:
    """Whether the folder's report is of other arms; other seeds of the same add to it."""
    there = (store.folder / "experiment.yaml").is_file()
    return there and store.experiment().arms != experiment.arms


def _write_report(folder: Path, beside: Path | None) -> None:
    from grokscope.report.page import write_report
    from grokscope.report.study import collect, paper_setting_beside
    from grokscope.runs.store import Store

    other = Store(beside) if beside else paper_setting_beside(folder)
    path = write_report(collect(Store(folder), other), folder)
    console.print(f"Report: {path.resolve().as_uri()}", soft_wrap=True)


def _command_line() -> str:
    return shlex.join(["grokscope", *sys.argv[1:]])
