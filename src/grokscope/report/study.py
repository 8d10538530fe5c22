"""From a folder of results to a `Study`: everything that a page shows, computed once."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.analysis.claims import ClaimReport, evaluate_claims, find_claim
from grokscope.analysis.milestones import FELL_AGAIN, UNSTABLE
from grokscope.analysis.run import Results
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.report.contents import Counterpart, Study
from grokscope.report.figures import figures_of, find_figure
from grokscope.report.panels import running_median
from grokscope.report.words import count, listed, seeds, step
from grokscope.runs.plan import Plan, PlannedSegment
from grokscope.runs.store import Store
from grokscope.spec import Experiment, PaperValue

MOST_NAMED = 6  # runs that a note names one by one


def collect(store: Store, beside: Store | None = None) -> Study:
    """Read what has run and analyse it.

    Args:
        store: A folder of results; unfinished segments count as far as they have come.
        beside: A second run of the experiment to show alongside; by default the one that the
            run was started with.

    Raises:
        FileNotFoundError: If nothing was run in a folder.
    """
    experiment = store.experiment()
    results = Results.read(store)
    other = beside or store.beside()
    return Study(
        results=results,
        name=experiment.name,
        title=experiment.title,
        question=experiment.question,
        claims=claims_of(results),
        counterpart=None if other is None else counterpart(other),
        settings=experiment.model_dump(mode="json"),
        environment=common(store.environments(experiment)),
        paper=[(row.what, row.value, value_here(row, results)) for row in experiment.paper],
        cites_paper=bool(experiment.paper) or experiment.name in EXPERIMENTS,
        figures=figures_of(experiment, results),
        notes=[*notes_on(Plan(experiment, store)), *unstable(results)],
        command=command_of(experiment, store),
        smoke_test=experiment.smoke_test,
    )


def check_names(experiment: Experiment, outside: Path | None = None) -> None:
    """Look up every claim and figure that an experiment names, before it runs.

    Args:
        experiment: Whose names.
        outside: The folder of its results, from which no code is run.

    Raises:
        ValueError: If there is none of a name, or it cannot be imported; says which, where it
            was named, and what was meant.
    """
    named = [
        *((f"contrasts.{place}.claim", contrast.claim, find_claim)
          for place, contrast in enumerate(experiment.contrasts)),
        *((f"claims.{place}", name, find_claim) for place, name in enumerate(experiment.claims)),
        *((f"figures.{place}", name, find_figure) for place, name in enumerate(experiment.figures)),
    ]  # fmt: skip
    for where, name, find in named:
        try:
            find(name, outside=outside)
        except ValueError as error:
            raise ValueError(f"{where} of {experiment.name}: {error}") from error


def claims_of(results: Results) -> list[ClaimReport]:
    """Verdicts on the claims of the experiment, each once; none before anything was measured."""
    if results.experiment is None or not any(arm.last_step for arm in results.arms.values()):
        return []
    return evaluate_claims(results, tuple(dict.fromkeys(results.experiment.claims)))


def command_of(experiment: Experiment, store: Store) -> str:
    """The command that was used or, in a folder that does not say, one that does the same."""
    recorded = store.command()
    if recorded and recorded["command"]:
        return str(recorded["command"])
    same = False
    if experiment.name in EXPERIMENTS:
        with suppress(ValueError):  # a preset of the user's
            same = find_experiment(experiment.name, experiment.preset).arms == experiment.arms
    if not same:
        return "grokscope run experiment.yaml --out .  # in the folder of this page"
    preset = [] if experiment.preset == "default" else ["--preset", experiment.preset]
    seeds = ",".join(map(str, experiment.seeds))
    return shlex.join(["grokscope", "run", experiment.name, *preset, "--seeds", seeds])


def counterpart(store: Store) -> Counterpart | None:
    """A second run to show alongside; None before anything was measured in it."""
    experiment = store.experiment()
    results = Results.read(store)
    if not any(arm.last_step for arm in results.arms.values()):
        return None
    title = f"a second run (preset {experiment.preset})"
    if experiment.name in EXPERIMENTS and experiment.preset == "paper":
        title = "grokscope's run in the paper's setting"
    return Counterpart(title, results)


def value_here(row: PaperValue, results: Results) -> Any:
    """The value of what the paper reports in these runs: the median over seeds.

    ``memorised`` and ``generalised`` are milestones, as text as in their table; of a
    ``split/measure``, ``last`` and ``before`` are the levels at the end of the last and of the
    first phase, ``first`` is the first look, and ``highest`` the top of the running median.
    """
    asked, _, name = row.measured.partition(" of ")
    which, _, curve = asked.partition(" ")
    runs = [run for run in results.runs if name in ("", run.arm)]
    if not asked:
        return None
    if not curve:
        return step(_median([run.milestone(which).step for run in runs]))
    split, _, measure = curve.partition("/")
    runs = [run for run in runs if run.has(measure, split)]
    if which in ("last", "before"):
        return _median([run.level(measure, split, -1 if which == "last" else 0) for run in runs])
    curves = [run.curve(measure, split) for run in runs]
    if which == "first":
        return _median([float(curve.values[0]) for curve in curves])
    return _median([float(running_median([curve]).values.max()) for curve in curves])


def common(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all segments have in common, and the total of their seconds."""
    if not environments:
        return {}
    merged: dict[str, Any] = {}
    for name in environments[0]:
        if name not in ("seeds", "started", "seconds"):
            seen = dict.fromkeys(environment.get(name) for environment in environments)
            merged[name] = " / ".join("unknown" if one is None else str(one) for one in seen)
    merged["segments"] = len(environments)
    seconds = math.fsum(float(environment.get("seconds", 0)) for environment in environments)
    merged["seconds of training and measuring"] = round(seconds, 1)
    return merged


def notes_on(plan: Plan) -> list[str]:
    """What a reader must know of runs that are not complete."""
    groups: dict[tuple[str, str, str], list[PlannedSegment]] = {}
    for entry in plan.entries.values():
        cut_off = entry.status != "diverged" and plan.is_cut_off(entry.segment)
        state: str = "cut off" if cut_off else entry.status
        arm, _, phase = entry.label.rpartition(f", seed {entry.users[0][1]}")
        groups.setdefault((state, arm, phase), []).append(entry)
    notes = []
    for (state, arm, phase), entries in groups.items():
        label = f"{arm}, {seeds([entry.users[0][1] for entry in entries])}{phase}"
        several = len(entries) > 1 and not phase
        steps = list(dict.fromkeys(f"{entry.step:,}" for entry in entries))
        at = f"step{'' if len(steps) == 1 else 's'} {listed(steps)}"
        place = f"{'are' if several else 'is'} at {at} of {entries[0].segment.phase.until:,}"
        text = {
            "diverged": f"diverged at {at} (features or logits were no longer finite); what was "
            "measured until then is shown.",
            "cut off": "was not run, because a phase before it diverged.",
            "new": f"{'have' if several else 'has'} not started.",
            "to resume": f"{place}; {'they are' if several else 'it is'} shown up to there.",
        }.get(state)
        notes += [f"{label} {text}"] if text else []
    return notes


def unstable(results: Results) -> list[str]:
    """A note on the runs that lost their validation accuracy again after generalising."""
    lost = {
        name: {seed: run.fell_again for seed, run in arm.runs.items() if run.fell_again > UNSTABLE}
        for name, arm in results.arms.items()
    }
    several = len(lost) > 1
    named = [
        f"{f'{arm}, ' if several else ''}seed {seed} ({share:.0%})"
        for arm, shares in lost.items()
        for seed, share in shares.items()
    ]
    if len(named) > MOST_NAMED:
        named = [
            f"{arm} ({len(shares)} of {count(len(results.arms[arm].runs), 'seed')}, "
            f"up to {max(shares.values()):.0%})"
            for arm, shares in lost.items()
            if shares
        ]
    if not named:
        return []
    return [
        f"Unstable after generalising: held-out accuracy fell below {FELL_AGAIN} again at a share "
        f"of the later looks in {listed(named)}. These runs count all the same; effects rest on "
        "medians."
    ]


def _median(values: Sequence[float], otherwise: Any = None) -> Any:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else otherwise
