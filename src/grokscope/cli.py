"""The command line: each command parses, calls one thing and says one thing.

Whatever needs torch is imported inside the command that uses it: ``--help`` must be quick.
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from grokscope.cli_options import Beside, Execution, Folder, Grid, Name, Selection, expand_options

if TYPE_CHECKING:
    from grokscope.runs.store import Store
    from grokscope.spec import Experiment

app = typer.Typer(
    name="grokscope",
    help="What does a network need in order to generalise? Measure, intervene, and see.",
    epilog="To begin: grokscope list. An error is one line; GROKSCOPE_TRACEBACK=1 prints the full "
    "traceback.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(highlight=False)


def _version(requested: bool) -> None:
    if requested:
        from grokscope.version import __version__

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
    """Options before any command; the help text is that of ``app``."""


@app.command("list")
def list_experiments(
    name: Annotated[
        str | None,
        typer.Argument(help="An experiment, to list its presets.", show_default=False),
    ] = None,
) -> None:
    """List the experiments, or the presets of one with their size and duration."""
    from grokscope.console import entry_table, experiments_table
    from grokscope.experiments import EXPERIMENTS, find_experiment

    if name is not None:
        find_experiment(name)  # raises with the names that exist
        console.print(entry_table(EXPERIMENTS[name]))
        return
    console.print(experiments_table(EXPERIMENTS.values()))
    console.print(
        "Presets:   grokscope list NAME\n"
        "Try one:   grokscope run NAME --preset tiny\n"
        "Settings:  grokscope show NAME --preset PRESET\n"
        "Your own:  grokscope run path/to/file.py:name"
    )


@app.command()
def measures(
    name: Annotated[
        str | None,
        typer.Argument(help="A measure, to show everything about it.", show_default=False),
    ] = None,
) -> None:
    """List the measures, or show everything about one."""
    from grokscope.console import measure_table, measures_table
    from grokscope.measures import records
    from grokscope.reference import did_you_mean

    known = records()
    if name is None:
        console.print(measures_table(known.values()))
        console.print("Everything about one: grokscope measures NAME")
        return
    if name not in known:
        raise ValueError(
            f"there is no measure {name!r}. {did_you_mean(name, known)}There are: "
            f"{', '.join(known)}"
        )
    console.print(measure_table(known[name]))


@app.command()
@expand_options
def show(name: Name, selection: Selection) -> None:
    """Show an experiment's settings; --set changes those of its arms."""
    from grokscope.spec import to_yaml

    experiment = selection.experiment(name)
    if experiment.smoke_test:
        print("# A smoke test: its results mean nothing.")
    print(to_yaml(experiment), end="")


@app.command()
@expand_options
def run(name: Name, selection: Selection, execution: Execution) -> None:
    """Run the missing parts of an experiment, then write its report. Ctrl-C is safe."""
    _run(selection.experiment(name), execution)


@app.command()
@expand_options
def sweep(name: Name, grid: Grid, selection: Selection, execution: Execution) -> None:
    """Run an experiment at every point of a grid of settings, then write one report."""
    from grokscope.spec import sweep as crossed

    _run(crossed(selection.experiment(name), grid), execution)


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
    from grokscope.runs.store import Store

    store = Store(out)
    store.experiment()
    if beside is not None:
        Store(beside).experiment()  # raises if there is none
        with suppress(OSError):  # a folder that cannot be written to gets a report all the same
            store.save_command(None, beside)
    _write_report(store, beside)


@app.command()
def claims(out: Folder) -> None:
    """Report which claims hold in a run, with effect, interval and seeds."""
    from grokscope.analysis.claims import SMOKE_TEST
    from grokscope.analysis.run import Results
    from grokscope.console import claims_table
    from grokscope.report.study import claims_of
    from grokscope.runs.store import Store

    results = Results.read(Store(out))
    findings = claims_of(results)
    if not findings:
        reason = "the experiment names none" if results.runs else "nothing has been measured yet"
        smoke = results.experiment is not None and results.experiment.smoke_test
        console.print(SMOKE_TEST if smoke else f"There are no claims to test: {reason}.")
        return
    console.print(claims_table(findings))
    for finding in findings:
        console.print(f"[bold]{finding.claim}[/bold] {escape(finding.statement)}", soft_wrap=True)
        console.print(escape(f"   {finding.headline.reason}"), soft_wrap=True)
        if finding.contexts:
            contexts = "; ".join(finding.contexts)
            console.print(f"   Also examined ({contexts}): see report.html.", soft_wrap=True)


@app.command()
def measure(
    *,
    model: Annotated[
        str,
        typer.Option(
            help="A folder written by save_pretrained, or file.py:function that returns a model."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A folder of Parquet files, or file.py:function that returns batches "
            "(inputs, labels)."
        ),
    ],
    split: Annotated[str, typer.Option(help="The split of the folder to use.")] = "test",
    head: Annotated[
        str | None, typer.Option(help="Name of the head, if it is not found automatically.")
    ] = None,
    max_examples: Annotated[
        int, typer.Option(min=2, help="Number of rows to use, spread over the split.")
    ] = 2048,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Examples per batch, for data from a folder.")
    ] = 64,
) -> None:
    """Measure the geometry of a saved model's head on a data set."""
    from grokscope.integrations.huggingface import measure_saved

    measurement = measure_saved(
        model, data, head=head, split=split, max_examples=max_examples, batch_size=batch_size
    )
    print(measurement)


def main() -> None:
    """Run the command line; a user's mistake is answered with a sentence, not a traceback."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("GROKSCOPE_TRACEBACK"):
            raise
        text = str(error).strip()
        trace = ""
        if text.startswith("Traceback"):  # from a process that ran a segment: the cause is last
            trace, _, text = text.rpartition("\n")
        message = Text.assemble((f"{trace}\n" if trace else "", "dim"), ("Error: ", "red"), text)
        Console(stderr=True, highlight=False).print(message, soft_wrap=True)
        sys.exit(2)


def _run(experiment: Experiment, execution: Execution) -> None:
    """Run what is missing, or show it; what ``run`` and ``sweep`` have in common."""
    folder = execution.folder(experiment)
    from grokscope.console import SegmentBars, estimate_line, runs_table
    from grokscope.report.study import check_names
    from grokscope.runs.launch import launch
    from grokscope.runs.plan import Plan
    from grokscope.runs.preflight import preflight
    from grokscope.runs.store import Store
    from grokscope.spec.sweep import SWEEP

    options = execution.options()
    if execution.beside:
        Store(execution.beside).experiment()  # raises before the work, not after it
    store = Store(folder)
    if execution.out is None and _replaces(experiment, store):
        raise ValueError(
            f"{folder} holds a run with other settings, and its report would be replaced; "
            "choose another folder with --out"
        )
    check_names(experiment, outside=store.folder)
    plan = Plan(experiment, store)
    preflight(plan, options)
    summary = f"{experiment.title} ({plan.summary()}) in {folder}"
    console.print(escape(summary), soft_wrap=True)
    if execution.dry_run or experiment.name.endswith(SWEEP):
        console.print(plan.runs_summary(), soft_wrap=True)
    if execution.dry_run:
        console.print(runs_table(plan))
        console.print(escape(estimate_line(plan, options)), soft_wrap=True)
        return
    store.save_command(_command_line(), execution.beside)
    try:
        bars = SegmentBars(plan, console)
        with bars.progress:
            finished = launch(
                experiment, store, options, bars, notify=lambda text: console.print(escape(text))
            )
    except KeyboardInterrupt:
        console.print("\nStopped; everything up to here is kept. To resume, run this again:")
        console.print(escape(f"  {_command_line()}"), soft_wrap=True)
        raise typer.Exit(130) from None
    _write_report(store, execution.beside)
    if not finished:
        raise RuntimeError(f"some segments have not finished; see: grokscope status {folder}")


def _replaces(experiment: Experiment, store: Store) -> bool:
    """Whether the folder's report is of other arms; other seeds of the same arms add to it."""
    exists = (store.folder / "experiment.yaml").is_file()
    return exists and store.experiment().arms != experiment.arms


def _write_report(store: Store, beside: Path | None) -> None:
    from grokscope.analysis.claims import NOT_JUDGED
    from grokscope.report.page import write_report
    from grokscope.report.study import collect
    from grokscope.runs.store import Store

    other = Store(beside) if beside else store.beside()
    study = collect(store, other)
    path = write_report(study, store.folder)
    for report in study.claims:
        if report.headline.reason.startswith(NOT_JUDGED):
            console.print(f"[yellow]{escape(report.headline.reason)}[/yellow]", soft_wrap=True)
    console.print(f"Report: {path.resolve().as_uri()}", soft_wrap=True)


def _command_line() -> str:
    return shlex.join(["grokscope", *sys.argv[1:]])
