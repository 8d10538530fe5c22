"""From a store to a `Study`: everything that the report shows, computed once."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from grokscope.analysis import evaluate_claims, onset_table, partial_correlations, plateau_table
from grokscope.analysis.claims import CLAIMS, ClaimReport
from grokscope.analysis.milestones import FELL_AGAIN, UNSTABLE
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.reference import did_you_mean, is_reference, load
from grokscope.report.contents import Counterpart, Study, no_onsets
from grokscope.report.curves import running_median
from grokscope.report.words import count, listed
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.spec import Experiment, PaperValue

EDGE = 9  # measuring points whose median is the level at the end


def collect(store: Store, beside: Store | None = None) -> Study:
    """Read what has run and analyse it.

    Args:
        store: A folder of results; unfinished segments count as far as they have come.
        beside: Another run of the experiment, such as the paper's setting, drawn next to it.

    Raises:
        FileNotFoundError: If nothing was run in a folder.
    """
    experiment = store.experiment()
    plan = Plan(experiment, store)
    metrics = store.metrics(experiment)
    milestones = plateau_table(metrics)
    return Study(
        name=experiment.name,
        title=experiment.title,
        question=experiment.question,
        metrics=metrics,
        claims=claims_of(experiment, metrics),
        milestones=milestones,
        # Bootstraps of every run, so only for who draws them.
        correlations=(
            partial_correlations(metrics)
            if "partial_correlations" in experiment.figures
            else pd.DataFrame()
        ),
        onsets=onset_table(metrics) if "onsets" in experiment.figures else no_onsets(),
        settings=experiment.model_dump(mode="json"),
        environment=common(store.environments(experiment)),
        paper=[
            (row.what, row.value, ours(row, experiment, metrics, milestones))
            for row in experiment.paper
        ],
        figures=experiment.figures,
        notes=[*notes_on(plan, experiment), *unstable(milestones)],
        counterpart=None if beside is None else counterpart(beside),
        command=command_of(experiment, store.folder),
    )


def check_names(experiment: Experiment) -> None:
    """Look up the claims and figures that an experiment names, before it is run.

    Raises:
        ValueError: If one does not exist; says where it is named, and the closest match.
    """
    from grokscope.report.figures import FIGURES

    named: list[tuple[str, str, Mapping[str, object]]] = [
        *(("claims", claim, CLAIMS) for claim in experiment.claims),
        *(("contrasts", contrast.claim, CLAIMS) for contrast in experiment.contrasts),
        *(("figures", figure, FIGURES) for figure in experiment.figures),
    ]
    for field, name, table in named:
        if is_reference(name):
            load(name)
        elif name not in table:
            noun = "figure" if field == "figures" else "claim"
            raise ValueError(
                f"{field}: there is no {noun} {name!r}. {did_you_mean(name, table)}There are: "
                f"{', '.join(table)}"
            )


def claims_of(experiment: Experiment, metrics: pd.DataFrame) -> list[ClaimReport]:
    """Verdicts on the experiment's claims; none before anything was measured."""
    if metrics.empty:
        return []
    known = [each for each in experiment.claims if each in CLAIMS]
    return evaluate_claims(metrics, known, experiment=experiment)


def command_of(experiment: Experiment, folder: Path) -> str:
    """What runs it again: the file of its settings, unless name, preset and seeds say it all."""
    if experiment.name in EXPERIMENTS:
        try:
            ours = find_experiment(experiment.name, experiment.preset)
        except ValueError:  # a preset of your own
            ours = experiment.model_copy(update={"arms": {}})
        if ours.arms == experiment.arms:
            return ""
    settings = str(folder / "experiment.yaml")
    return shlex.join(["grokscope", "run", settings, "--out", str(folder)])


def counterpart(store: Store) -> Counterpart | None:
    """Another run, to be drawn beside; None before anything was measured in it."""
    experiment = store.experiment()
    metrics = store.metrics(experiment)
    if metrics.empty:
        return None
    title = "the paper's setting" if experiment.preset == "paper" else experiment.preset
    return Counterpart(title, metrics, plateau_table(metrics))


def paper_setting_beside(folder: Path) -> Store | None:
    """The store of the paper's setting next to a run's folder, where it has been run."""
    folder = folder.resolve()
    other = folder.with_name(f"{folder.name}-paper")
    return Store(other) if (other / "experiment.yaml").is_file() else None


def ours(
    row: PaperValue, experiment: Experiment, metrics: pd.DataFrame, milestones: pd.DataFrame
) -> Any:
    """Our value of what the paper reports: the median over seeds.

    ``memorised`` and ``generalised`` are milestones; ``first``, ``highest`` and ``last`` of a
    ``split/measure`` are read from its running median, for training spikes.
    """
    if not row.measured:
        return None
    told, _, arm = row.measured.partition(" of ")
    which, _, curve = told.partition(" ")
    if not curve:
        found = milestones[which].dropna() if which in milestones else pd.Series(dtype=float)
        return float(found.median()) if len(found) else "not reached"
    split, _, measure = curve.partition("/")
    rows = metrics[(metrics["split"] == split) & (metrics["measure"] == measure)]
    if arm:
        rows = rows[rows["arm"] == arm]
    values = []
    for (name, _), own in rows.groupby(["arm", "seed"], observed=True):
        first = experiment.arms[str(name)].phases[0].until
        series = own.set_index("step")["value"].sort_index().dropna()
        if not series.empty:
            smooth = running_median(series.to_frame())
            levels = {
                "first": series.iloc[0],
                "highest": smooth.max(),
                "last": series.iloc[-EDGE:].median(),
                "before": series[series.index <= first].iloc[-EDGE:].median(),
            }
            values.append(float(levels[which]))
    return float(np.median(values)) if values else None


def common(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all segments have in common, and the total of their seconds."""
    if not environments:
        return {}
    merged: dict[str, Any] = {}
    for name in environments[0]:
        if name in ("seeds", "started", "seconds"):
            continue
        seen = dict.fromkeys(each.get(name) for each in environments)
        merged[name] = " / ".join("unknown" if each is None else str(each) for each in seen)
    merged["segments"] = len(environments)
    merged["seconds of training and measuring"] = round(
        math.fsum(float(each.get("seconds", 0)) for each in environments), 1
    )
    return merged


def notes_on(plan: Plan, experiment: Experiment) -> list[str]:
    """What a reader must know of runs that are not whole, and of claims without a test."""
    notes = []
    for entry in plan.entries.values():
        if entry.status == "diverged":
            notes.append(
                f"{entry.label} diverged at step {entry.step:,} (features or logits no longer "
                "finite); what was measured until then is shown."
            )
        elif plan.is_cut_off(entry.segment):
            notes.append(f"{entry.label} does not exist, as a phase before it diverged.")
        elif entry.status == "new":
            notes.append(f"{entry.label} has not begun.")
        elif entry.status == "stopped":
            until = entry.segment.phase.until
            notes.append(
                f"{entry.label} is at step {entry.step:,} of {until:,}; it is shown so far."
            )
    untested = [each for each in experiment.claims if each not in CLAIMS]
    if untested:
        notes.append(
            f"There is no test yet for {count(len(untested), 'claim')}: {listed(untested)}."
        )
    return notes


def unstable(milestones: pd.DataFrame) -> list[str]:
    """A note on the runs that lost their validation accuracy again after generalising."""
    many = milestones["arm"].nunique() > 1
    columns = (milestones["arm"], milestones["seed"], 1 - milestones["stable_after"])
    lost = [
        f"{f'{arm}, ' if many else ''}seed {seed} ({share:.0%})"
        for arm, seed, share in zip(*columns, strict=True)
        if share > UNSTABLE
    ]
    if not lost:
        return []
    return [
        f"Unstable after generalising: validation accuracy was below {FELL_AGAIN} again at a share "
        f"of the later measuring points in {listed(lost)}. The runs count all the same; effects "
        "rest on medians."
    ]
