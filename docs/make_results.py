"""Writes docs/results.md and the README's picture from what lies in results/: ``make results``.

Nothing on that page is typed by hand but the list of the paper's figures.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from grokscope.analysis.run import Results
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.report.page import write_report
from grokscope.report.study import claims_of, collect, common, value_here
from grokscope.report.words import interval, name_of, number
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.spec import Experiment

ROOT = Path(__file__).resolve().parent.parent
# Which of the paper's figures an experiment draws; none: it is ours.
FIGURES = {
    "grokking": "1, 20",
    "suppress-collapse": "2, 3, 5",
    "suppress-collapse-strength": "6",
    "suppress-collapse-augmented": "7",
    "suppress-flatness": "4a, 8, 9, 10",
    "suppress-flatness-early": "version 1",
    "suppress-flatness-strength": "11",
    "suppress-flatness-cap": "12",
}
SIGNS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "undecided": "? undecided"}


def page(folder: Path = ROOT / "results") -> str:
    """The page as Markdown."""
    stores = {each.name: Store(each) for each in sorted(folder.iterdir()) if each.is_dir()}
    lines = [
        "# Results",
        "",
        "Made by `make results` from the runs that are committed in `results/` (settings, metrics,",
        "environment). `grokscope report results/NAME` writes the full report of each, with the",
        "claims in words and the rules of their verdicts (in code: `grokscope.analysis.claims`).",
        f"In words: [findings.md](findings.md). {_on_gpu(stores.values())}",
        "",
        "| experiment | the paper's figure | status | command |",
        "|---|---|---|---|",
        *_experiments(stores),
    ]
    for name, store in stores.items():
        lines += ["", *_section(name, store)]
    return "\n".join(lines) + "\n"


def _on_gpu(stores: Iterable[Store]) -> str:
    """What a reader must know of the machines."""
    for store in stores:
        experiment = store.experiment()
        devices = {facts["device"] for facts in store.environments(experiment)}
        if experiment.preset == "paper" and devices - {"cpu"}:
            return "Sections say which device was used."
    return "Nothing has been run at the paper's scale on a GPU."


def _experiments(stores: dict[str, Store]) -> Iterator[str]:
    ran: dict[str, list[str]] = {}
    for folder, store in stores.items():
        experiment = store.experiment()
        ran.setdefault(experiment.name, []).append(f"[{experiment.preset}](#{folder})")
    for name, entry in EXPERIMENTS.items():
        first = next(iter(entry.presets))
        preset = "" if first == "default" else f" --preset {first}"
        status = ", ".join(ran.get(name, [])) or "not run"
        yield f"| {name} | {FIGURES.get(name, '')} | {status} | `grokscope run {name}{preset}` |"


def _section(name: str, store: Store) -> Iterator[str]:
    experiment = store.experiment()
    results = Results.read(store)
    yield f"## {name}"
    yield ""
    stop = "" if experiment.title.endswith("?") else "."
    yield f"{experiment.title}{stop} {experiment.question}"
    yield ""
    seeds = len(experiment.seeds)
    yield (
        f"Preset `{experiment.preset}`, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{Plan(experiment, store).summary()}. {_computed_on(store, experiment)}"
        f"{_changes(experiment)}"
    )
    yield ""
    yield "| claim | on | verdict | effect (95 % interval) | seeds |"
    yield "|---|---|---|---|---|"
    for report in claims_of(results):
        for finding in report.findings():
            basis = finding.basis if report.compares else name_of(finding.basis)
            between = interval(*finding.interval) if finding.seeds else ""
            effect = number(finding.effect)
            if finding.effect == finding.effect:
                effect += f" ({between}) {finding.unit}" if between else f" {finding.unit}"
            yield (
                f"| {report.claim} | {basis} | {SIGNS[finding.verdict]} | "
                f"{effect} | {finding.seeds or ''} |"
            )
    if experiment.paper:
        yield ""
        yield "| what the paper reports | the paper | ours |"
        yield "|---|---|---|"
        for row in experiment.paper:
            here = number(value_here(row, results))
            yield f"| {row.what} | {row.value} | {here} |"


def _computed_on(store: Store, experiment: Experiment) -> str:
    """Machine and hours of the segments that have finished; empty while none has."""
    facts = common(store.environments(experiment))
    if not facts:
        return ""
    on_cpu = facts["device"] == "cpu"
    where, hours = (facts["processor"], "core hours") if on_cpu else (facts["device"], "GPU hours")
    seconds = facts["seconds of training and measuring"]
    return f"{where}, torch {facts['torch']}, {seconds / 3600:.2f} {hours}. "


def _changes(experiment: Experiment) -> str:
    """How the settings differ from the preset's, as ``run`` would be told."""
    preset = find_experiment(experiment.name, experiment.preset)
    parts = ["grokscope", "run", experiment.name, "--preset", experiment.preset]
    if experiment.seeds != preset.seeds:
        parts += ["--seeds", ",".join(map(str, experiment.seeds))]
    ends = {run.phases[-1].until for run in experiment.arms.values()}
    planned = {run.phases[-1].until for run in preset.arms.values()}
    if ends != planned:
        parts += ["--set", f"phases.-1.until={ends.pop()}"]
    return f"Command: `{shlex.join(parts)}`."


def picture(folder: Path = ROOT / "results") -> bytes:
    """The main figure of the grokking page, beside the run in the paper's setting, as PNG."""
    study = collect(Store(folder / "grokking"), Store(folder / "grokking-paper"))
    with TemporaryDirectory() as place:
        write_report(study, Path(place))
        return (Path(place) / "figures" / "grokking.png").read_bytes()


if __name__ == "__main__":
    (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")
    (ROOT / "docs" / "images" / "grokking.png").write_bytes(picture())
