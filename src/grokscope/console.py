"""What the terminal shows: progress while segments run, and tables of what is stored."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from grokscope.analysis.claims import ClaimReport
    from grokscope.experiments.catalogue import CatalogueEntry
    from grokscope.measures.record import Measure
    from grokscope.runs.jobs import Progress as SegmentProgress
    from grokscope.runs.options import RunOptions
    from grokscope.runs.plan import Plan

SHOWN = {
    "train/accuracy": "train {:.0%}",
    "validation/accuracy": "val {:.0%}",
    "train/relative_flatness": "kappa {:.3g}",
    "train/ncc": "NCC {:.3g}",
}
FIELDS = (  # of a measure, as a reader meets them
    "symbol", "formula", "unit", "range", "direction", "needs", "cost", "source", "note",
)  # fmt: skip
SMOKE_TEST = "a smoke test, whose results mean nothing"
SYMBOLS = {"supported": "[green]✓ supported", "contradicted": "[red]✗ contradicted"}


class SegmentBars:
    """A bar for each missing segment: rate, time left, accuracies, kappa and NCC.

    Bars are drawn while ``progress`` is entered; calling the object with news moves them.
    Where the output is not a terminal, a line is printed at every tenth of a segment instead.

    Args:
        plan: Whose missing segments are run.
        console: Where to print.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console = console
        self.entries = {segment.id: plan.entries[segment.id] for segment in plan.missing()}
        self.latest: dict[str, dict[str, float]] = {key: {} for key in self.entries}
        self.started: dict[str, tuple[float, int]] = {}
        self.tenths: dict[str, int] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}", style="cyan"),
        )
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bars: dict[str, TaskID] = {
            key: self.progress.add_task(
                escape(entry.label),
                total=entry.segment.phase.until - entry.segment.start,
                completed=entry.step - entry.segment.start,
                rate="",
                values="",
            )
            for key, entry in self.entries.items()
        }

    def __call__(self, news: SegmentProgress) -> None:
        entry = self.entries[news.segment]
        self.latest[news.segment].update(news.values)
        done = news.step - entry.segment.start
        values = self._values(news.segment)
        if news.diverged:
            values = f"[red]diverged at step {news.step:,}[/red]"
        rate = self._rate(news.segment, news.step)
        self.progress.update(self.bars[news.segment], completed=done, rate=rate, values=values)
        if not self.console.is_terminal:
            self._line(news, values, rate)

    def _values(self, segment: str) -> str:
        latest = self.latest[segment]
        shown = (form.format(latest[name]) for name, form in SHOWN.items() if name in latest)
        return "  ".join(shown)

    def _rate(self, segment: str, step: int) -> str:
        since, first = self.started.setdefault(segment, (time.monotonic(), step))
        elapsed = time.monotonic() - since
        return f"{(step - first) / elapsed:.1f} steps/s" if elapsed > 1 and step > first else ""

    def _line(self, news: SegmentProgress, values: str, rate: str) -> None:
        entry = self.entries[news.segment]
        total = entry.segment.phase.until - entry.segment.start
        tenth = 10 * (news.step - entry.segment.start) // total
        if tenth > self.tenths.get(news.segment, -1) or news.diverged:
            self.tenths[news.segment] = tenth
            step = f"step {news.step:,} of {entry.segment.phase.until:,}"
            parts = (escape(entry.label), step, rate, values)
            self.console.print("  ".join(filter(None, parts)), soft_wrap=True)


def experiments_table(entries: Iterable[CatalogueEntry]) -> Table:
    """Every experiment with its title, and its presets, the default one first."""
    table = _table(("experiment", "what it is about", "presets"), whole="experiment")
    for entry in entries:
        presets = ", ".join(entry.presets)
        table.add_row(f"[bold]{entry.name}", entry().title, presets)
    return table


def entry_table(entry: CatalogueEntry) -> Table:
    """What an experiment asks, and its presets with their size and duration."""
    default = entry()
    table = _table(("preset", "what it is for", "runs", "on 2 cores"), right=("runs",))
    table.title = f"[bold]{entry.name}[/bold]  {default.title}\n{default.question}"
    for name, preset in entry.presets.items():
        experiment = entry(name)
        longest = max(run.phases[-1].until for run in experiment.arms.values())
        runs = f"{len(experiment.arms) * len(experiment.seeds)} of {longest:,} steps"
        about = f"{preset.about}: {SMOKE_TEST}" if experiment.smoke_test else preset.about
        table.add_row(name, about, runs, preset.duration)
    return table


def plan_table(plan: Plan) -> Table:
    """Segments with their state, and how much work is left."""
    table = _table(("segment", "id", "state", "step", "time"), right=("step", "time"))
    table.title = f"[italic]{plan.summary()}"
    for name, entry in plan.entries.items():
        steps = f"{entry.step:,}/{entry.segment.phase.until:,}"
        took = clock(entry.seconds) if entry.seconds else ""
        state = "cut off" if plan.is_cut_off(entry.segment) else entry.status
        table.add_row(*(escape(entry.label), name, state, steps, took))
    left = plan.estimate().seconds
    if left:
        table.caption = (
            f"about {clock(left)} of work left for one worker, estimated from the segments that "
            "have finished"
        )
    return table


def runs_table(plan: Plan) -> Table:
    """Every run, an arm with a seed, and its state."""
    table = _table(("arm", "seed", "state"), right=("seed",))
    for arm, seed, state in plan.run_states():
        table.add_row(escape(arm), str(seed), state)
    return table


def estimate_line(plan: Plan, options: RunOptions) -> str:
    """What the missing segments will take with the workers of ``options``, if that is known."""
    missing = len(plan.missing())
    if not missing:
        return "Nothing is left to run."
    # A cluster tells how large it is only when it is asked to work.
    workers = options.worker_count(missing) if options.on == "local" else options.workers or 1
    left = plan.estimate(workers)
    if left.seconds is None or left.disk is None:
        kinds = ", ".join(left.unknown)
        return f"Time and disk are not known yet: no segment of the task {kinds} has finished here."
    noun = "worker" if workers == 1 else "workers"
    return (
        f"About {clock(left.seconds)} with {workers} {noun} and {left.disk / 1e6:,.1f} MB of "
        "disk, estimated from the segments that have finished."
    )


def measures_table(measures: Iterable[Measure]) -> Table:
    """Every measure: name, what it is, unit, direction and what it needs."""
    table = _table(("measure", "what it is", "unit", "direction", "needs"), whole="measure")
    for measure in measures:
        cells = (measure.title, measure.unit, measure.direction, ", ".join(measure.needs))
        table.add_row(f"[bold]{escape(measure.name)}", *map(escape, cells))
    return table


def measure_table(measure: Measure) -> Table:
    """Everything about one measure."""
    table = _table(("field", "value"))
    table.title = f"[bold]{escape(measure.name)}[/bold]  {escape(measure.title)}"
    table.show_header = False
    for name in FIELDS:
        value = getattr(measure, name)
        if value:
            table.add_row(name, escape(value if isinstance(value, str) else ", ".join(value)))
    return table


def claims_table(claims: Iterable[ClaimReport]) -> Table:
    """Verdicts with effect, interval and seeds; each basis of a claim has a line."""
    from grokscope.report.words import interval, name_of, number

    table = _table(("claim", "rests on", "verdict", "effect", "seeds"), right=("seeds",))
    for report in claims:
        for finding in report.findings():
            first = finding is report.headline
            between = interval(*finding.interval) if finding.seeds else ""
            basis = finding.basis if report.compares else name_of(finding.basis)
            parts = (number(finding.effect), f"({between})" if between else "", finding.unit)
            effect = "" if math.isnan(finding.effect) else " ".join(filter(None, parts))
            claim = f"[bold]{report.claim}" if first else ""
            verdict = SYMBOLS.get(finding.verdict, "[yellow]? undecided")
            seeds = str(finding.seeds or "")
            table.add_row(*(claim, basis, verdict, effect, seeds))
        table.add_section()
    return table


def _table(columns: Sequence[str], right: Collection[str] = (), whole: str = "") -> Table:
    """An empty table.

    Args:
        columns: Their headings.
        right: Those that are aligned to the right, as numbers are.
        whole: The one whose words are not broken.
    """
    table = Table(title_justify="left", title_style="")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=column == whole)
    return table


def clock(seconds: float) -> str:
    """A duration for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
