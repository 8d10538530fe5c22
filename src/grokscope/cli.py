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
    from grokscope.runs.launch import Launch
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
Beside = Annotated[
    Path | None,
    typer.Option(help="Another run, drawn beside; default FOLDER-paper, if there is one."),
]
Grid = Annotated[
    list[str],
    typer.Option(
        metavar="PATH=A,B,C",
        help="Values of a setting, paths as in --set; can be repeated: all combinations are run.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of results; default runs/NAME or runs/NAME-PRESET.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes at once; default: by cores.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of each process.")]
CheckpointSeconds = Annotated[
    float, typer.Option(min=0, help="Seconds of work lost at most if a process is killed.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: CUDA where there is any.")]
ReplicasOption = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        min=1,
        help="Runs that train together in one process, at most; default: 1 on a CPU, as many as "
        "memory holds on a GPU.",
    ),
]
On = Annotated[
    Literal["local", "ray"],
    typer.Option(help="This machine, or a Ray cluster whose nodes share the folder of results."),
]
Address = Annotated[
    str | None,
    typer.Option(help="The Ray cluster, host:port or auto; default: one is started here."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would run; start nothing.")]


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
    out: Out = None,
    workers: Workers = None,
    threads: Threads = 1,
    checkpoint_seconds: CheckpointSeconds = 30.0,
    device: Device = "auto",
    replicas: ReplicasOption = None,
    on: On = "local",
    address: Address = None,
    beside: Beside = None,
    dry_run: DryRun = False,
) -> None:
    """Run what is missing of an experiment, then write its report. Ctrl-C is safe."""
    experiment = _experiment(name, preset, set_, seeds)
    from grokscope.runs.launch import Launch

    how = Launch(workers, threads, checkpoint_seconds, device, replicas, on, address)
    _run(experiment, out, how, beside, dry_run)


@app.command()
def sweep(
    name: Name,
    grid: Grid,
    preset: Preset = "default",
    set_: Sets = None,
    seeds: Seeds = None,
    out: Out = None,
    workers: Workers = None,
    threads: Threads = 1,
    checkpoint_seconds: CheckpointSeconds = 30.0,
    device: Device = "auto",
    replicas: ReplicasOption = None,
    on: On = "local",
    address: Address = None,
    beside: Beside = None,
    dry_run: DryRun = False,
) -> None:
    """Run an experiment at every point of a grid of settings, then write one report."""
    from grokscope.spec import sweep as crossed

    experiment = crossed(_experiment(name, preset, set_, seeds), grid)
    from grokscope.runs.launch import Launch

    how = Launch(workers, threads, checkpoint_seconds, device, replicas, on, address)
    _run(experiment, out, how, beside, dry_run)


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


def _run(
    experiment: Experiment, out: Path | None, how: Launch, beside: Path | None, dry_run: bool
) -> None:
    """Run what is missing, or show it; what ``run`` and ``sweep`` have in common."""
    variant = "" if experiment.preset == "default" else f"-{experiment.preset}"
    folder = out or Path("runs") / f"{experiment.name}{variant}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name another with --out")
    from grokscope.console import SegmentBars, estimate_line, runs_table
    from grokscope.runs.estimate import runs_summary
    from grokscope.runs.launch import launch
    from grokscope.runs.plan import Plan
    from grokscope.runs.store import Store
    from grokscope.runs.worker import find_device
    from grokscope.spec.sweep import SWEEP
    from grokscope.tasks import check_task

    if how.on == "local":
        find_device(how.device)
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
    about = f"{experiment.title} ({plan.summary()}) in {folder}"
    console.print(escape(about), soft_wrap=True)
    if dry_run or experiment.name.endswith(SWEEP):
        console.print(runs_summary(plan), soft_wrap=True)
    if dry_run:
        console.print(runs_table(plan))
        console.print(escape(estimate_line(plan, store, how)), soft_wrap=True)
        return
    try:
        with SegmentBars(plan, console) as bars:
            done = launch(experiment, store, how, bars, lambda words: console.print(escape(words)))
    except KeyboardInterrupt:
        console.print("\nStopped; everything up to here is kept. To go on, run this again:")
        console.print(escape(f"  {_command_line()}"), soft_wrap=True)
        raise typer.Exit(130) from None
    _write_report(folder, beside)
    if not done:
        raise RuntimeError(f"not all is finished, see: grokscope status {folder}")


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
