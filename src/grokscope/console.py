"""What the terminal shows: progress while segments run, and tables of what is stored."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from grokscope.analysis.claims import ClaimReport
    from grokscope.experiments.catalogue import Entry
    from grokscope.runs.launch import Launch
    from grokscope.runs.plan import Plan
    from grokscope.runs.store import Store
    from grokscope.runs.worker import Progress as SegmentProgress

SHOWN = {
    "train/accuracy": "train {:.0%}",
    "validation/accuracy": "val {:.0%}",
    "train/relative_flatness": "kappa {:.3g}",
    "train/ncc": "NCC {:.3g}",
}
SYMBOLS = {"supported": "[green]✓ supported", "contradicted": "[red]✗ contradicted"}


class SegmentBars:
    """A bar for each missing segment: rate, time left, accuracies, kappa and NCC.

    Where the output is no terminal, a line at every tenth of a segment instead.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console = console
        self.entries = {each.id: plan.entries[each.id] for each in plan.missing()}
        self.latest: dict[str, dict[str, float]] = {key: {} for key in self.entries}
        self.started: dict[str, tuple[float, int]] = {}
        self.tenths: dict[str, int] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}", style="cyan"),
            console=console,
            disable=not console.is_terminal,
        )
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

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def __call__(self, heard: SegmentProgress) -> None:
        entry = self.entries[heard.segment]
        self.latest[heard.segment].update(heard.values)
        done = heard.step - entry.segment.start
        values = self._values(heard.segment)
        if heard.diverged:
            values = f"[red]diverged at step {heard.step:,}[/red]"
        rate = self._rate(heard.segment, heard.step)
        self.progress.update(self.bars[heard.segment], completed=done, rate=rate, values=values)
        if not self.console.is_terminal:
            self._line(heard, values, rate)

    def _values(self, segment: str) -> str:
        latest = self.latest[segment]
        shown = (form.format(latest[name]) for name, form in SHOWN.items() if name in latest)
        return "  ".join(shown)

    def _rate(self, segment: str, step: int) -> str:
        since, first = self.started.setdefault(segment, (time.monotonic(), step))
        elapsed = time.monotonic() - since
        return f"{(step - first) / elapsed:.1f} steps/s" if elapsed > 1 and step > first else ""

    def _line(self, heard: SegmentProgress, values: str, rate: str) -> None:
        entry = self.entries[heard.segment]
        total = entry.segment.phase.until - entry.segment.start
        tenth = 10 * (heard.step - entry.segment.start) // total
        if tenth > self.tenths.get(heard.segment, -1) or heard.diverged:
            self.tenths[heard.segment] = tenth
            step = f"step {heard.step:,} of {entry.segment.phase.until:,}"
            parts = (escape(entry.label), step, rate, values)
            self.console.print("  ".join(filter(None, parts)), soft_wrap=True)


def experiments_table(entries: Mapping[str, Entry]) -> Table:
    """Every experiment with its question in a line, and its presets, the usual one first."""
    table = Table()
    for column in ("experiment", "what it is about", "presets"):
        table.add_column(column, no_wrap=column == "experiment")
    for name, entry in entries.items():
        title = entry.make(next(iter(entry.presets))).title
        table.add_row(f"[bold]{name}", title, ", ".join(entry.presets))
    return table


def entry_table(name: str, entry: Entry) -> Table:
    """What an experiment asks, and its presets with their size and duration."""
    experiment = entry.make(next(iter(entry.presets)))
    table = Table(
        title=f"[bold]{name}[/bold]  {experiment.title}\n{experiment.question}",
        title_justify="left",
        title_style="",
    )
    for column in ("preset", "what it is for", "runs", "on 2 cores"):
        table.add_column(column, justify="right" if column == "runs" else "left")
    for preset, each in entry.presets.items():
        own = entry.make(preset)
        longest = max(run.phases[-1].until for run in own.arms.values())
        runs = len(own.arms) * len(own.seeds)
        table.add_row(preset, each.about, f"{runs} of {longest:,} steps", each.duration)
    return table


def plan_table(plan: Plan) -> Table:
    """Segments with their state, and how long the rest will take by what has run so far."""
    table = Table(title=plan.summary(), title_justify="left")
    for column in ("segment", "id", "state", "step", "time"):
        table.add_column(column, justify="right" if column in ("step", "time") else "left")
    for key, entry in plan.entries.items():
        steps = f"{entry.step:,}/{entry.segment.phase.until:,}"
        took = clock(entry.seconds) if entry.seconds else ""
        state = "cut off" if plan.is_cut_off(entry.segment) else entry.status
        table.add_row(escape(entry.label), key, state, steps, took)
    left = plan.seconds_left()
    if left is not None:
        table.caption = f"about {clock(left)} of work left, by the speed of the finished segments"
    return table


def runs_table(plan: Plan) -> Table:
    """Every run, an arm with a seed, and its state."""
    from grokscope.runs.estimate import run_states

    table = Table()
    for column in ("arm", "seed", "state"):
        table.add_column(column, justify="right" if column == "seed" else "left")
    for arm, seed, state in run_states(plan):
        table.add_row(escape(arm), str(seed), state)
    return table


def estimate_line(plan: Plan, store: Store, how: Launch) -> str:
    """What the missing segments will take with the workers of ``how``, or why that is unknown."""
    from grokscope.runs.estimate import estimate

    missing = len(plan.missing())
    if not missing:
        return "Nothing is left to run."
    # How large a cluster is, it tells when it is asked to work.
    workers = how.processes(missing) if how.on == "local" else how.workers or 1
    left = estimate(plan, store, workers)
    if left.seconds is None or left.disk is None:
        kinds = ", ".join(left.unknown)
        return f"Time and disk are not known: no segment of {kinds} has finished here."
    noun = "worker" if workers == 1 else "workers"
    return (
        f"About {clock(left.seconds)} with {workers} {noun} and {left.disk / 1e6:,.1f} MB of "
        "disk, by the finished segments here."
    )


def claims_table(claims: Iterable[ClaimReport]) -> Table:
    """Verdicts with effect, interval and seeds; every basis of the claim itself has a line."""
    from grokscope.report.words import interval, name_of, number

    table = Table(show_lines=False)
    for column in ("claim", "rests on", "verdict", "effect", "seeds"):
        table.add_column(column, justify="right" if column == "seeds" else "left")
    for report in claims:
        for finding in report.findings():
            first = finding is report.headline
            between = interval(*finding.interval)
            parts = (number(finding.effect), f"({between})" if between else "", finding.unit)
            effect = "" if math.isnan(finding.effect) else " ".join(filter(None, parts))
            table.add_row(
                f"[bold]{report.claim}" if first else "",
                name_of(finding.basis),
                SYMBOLS.get(finding.verdict, "[yellow]? undecided"),
                effect,
                str(finding.seeds or ""),
            )
        table.add_section()
    return table


def clock(seconds: float) -> str:
    """A duration for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
