"""The report's page: one HTML file that carries its figures, and the figures as PDF and PNG."""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from grokscope import __version__
from grokscope.report import words
from grokscope.report.contents import Study
from grokscope.report.curves import MOST_ARMS, MissingMeasureError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
STEPS = ("memorised", "onset", "generalised")
HEADINGS = {
    "memorised": "memorised",
    "onset": "generalisation begins",
    "generalised": "generalised",
    "stable_after": "share stable after",
}
PIXELS_PER_INCH = 96  # of CSS
BY_COLUMN = ("grokking", "collapse", "confidence", "representativeness")  # an arm is a column there


@dataclass(frozen=True)
class Shown:
    """A figure on the page: inline SVG for wide and, unless it has to scroll, narrow screens."""

    name: str
    title: str
    caption: str
    reading: str
    wide: str
    narrow: str


def write_report(study: Study, folder: Path) -> Path:
    """Write ``report.html`` and ``figures/*.pdf, *.png``.

    The page needs no other file, no network and no JavaScript. The same study gives the same
    bytes. A figure whose measures are missing is left out, and a note says so.

    Args:
        study: What to show.
        folder: Where to write; made when it isn't there.

    Returns:
        The path of the page.

    Cost: a quarter of a second for each figure, most of it in matplotlib's three formats.
    """
    folder = Path(folder)
    figures, notes = draw_figures(study, folder / "figures")
    page = render(study, figures, notes)
    path = folder / "report.html"
    _replace(path, page.encode("utf-8"))
    return path


def draw_figures(study: Study, folder: Path) -> tuple[list[Shown], list[str]]:
    """Draw the study's figures into a folder.

    Returns:
        The figures for the page, and a note for each that was left out.
    """
    from matplotlib import rc_context

    from grokscope.report.figures import FIGURES
    from grokscope.report.panels import STYLE

    folder.mkdir(parents=True, exist_ok=True)
    shown, notes = [], []
    for name in study.figures:
        if name not in FIGURES:
            notes.append(f"There is no figure named {name}; there are: {', '.join(FIGURES)}.")
            continue
        try:
            with rc_context(STYLE):
                wide, narrow = FIGURES[name](study, False), FIGURES[name](study, True)
                _save(wide.figure, folder / name)
                vector = _svg(wide.figure, f"{name}-wide")
                fits = narrow.figure.get_figwidth() < wide.figure.get_figwidth()
                small = _svg(narrow.figure, f"{name}-narrow") if fits else ""
            shown.append(Shown(name, wide.title, wide.caption, wide.reading, vector, small))
        except MissingMeasureError as missing:
            notes.append(f"The figure {name} is left out: {missing}.")
    for name in FIGURES.keys() - {each.name for each in shown}:
        for suffix in (".pdf", ".png"):  # of an earlier report, and not of this one
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    return shown, notes


def render(study: Study, figures: list[Shown], notes: list[str]) -> str:
    """The page as HTML; everything that is not ours is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "name_of": words.name_of,
        "typeset": words.typeset,
        "interval": lambda pair: words.interval(*pair),
    }
    arms = len(pd.unique(study.metrics["arm"])) if len(study.metrics) else 0
    if arms > MOST_ARMS and any(each.name in BY_COLUMN for each in figures):
        notes = [*notes, f"Figures show the first {MOST_ARMS} of {arms} arms."]
    return environment.get_template("template.html").render(
        study=study,
        answer=words.answer(study.claims),
        symbols=SYMBOLS,
        figures=figures,
        milestones=milestone_table(study.milestones),
        paper=[[words.number(cell) for cell in row] for row in study.paper],
        settings=_yaml(study.settings),
        environment=list(_flat(study.environment)),
        notes=[*map(str, study.notes), *notes],
        command=study.command or command(study),
        version=__version__,
    )


def milestone_table(milestones: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the milestones as text, with a row of medians for several seeds.

    The arm's column is left out where there is but one. Arms that were not meant to grok, and of
    which no run did, have no table.
    """
    many = "arm" in milestones and milestones["arm"].nunique() > 1
    if milestones.empty or (many and milestones[["onset", "generalised"]].isna().all(axis=None)):
        return [], []
    columns = [each for each in milestones if each != "arm" or many]
    rows = [
        [_cell(name, value) for name, value in zip(columns, row, strict=True)]
        for row in milestones[columns].itertuples(index=False)
    ]
    if len(milestones) > 1 and not many:
        numeric = milestones.drop(columns=["arm", "seed"], errors="ignore")
        medians = numeric.apply(pd.to_numeric, errors="coerce").median()
        rows.append(["median" if n == "seed" else _cell(n, medians.get(n)) for n in columns])
    return [HEADINGS.get(str(name), str(name).replace("_", " ")) for name in columns], rows


def command(study: Study) -> str:
    """The command that runs the study again, from its name, preset and seeds."""
    parts = ["grokscope", "run", study.name]
    if study.settings.get("preset", "default") != "default":
        parts += ["--preset", str(study.settings["preset"])]
    seeds = study.settings.get("seeds")
    if seeds:
        parts += ["--seeds", ",".join(map(str, seeds))]
    return shlex.join(parts)


def _cell(name: Any, value: Any) -> str:
    if name in STEPS:
        return words.step(value)
    if name == "seed":
        return str(value)
    return words.number(value)


def _save(figure: Figure, stem: Path) -> None:
    """The figure as PDF and PNG, without dates or versions in them."""
    for suffix, metadata, dpi in (
        (".pdf", {"CreationDate": None, "Producer": None, "Creator": None}, 72),
        (".png", {"Software": None}, 200),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=metadata)
        _replace(stem.with_suffix(suffix), buffer.getvalue())


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as an SVG element for an HTML page that holds several.

    Ids get a prefix, for they would collide; the style sheet goes, for it would style the page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for element in ("metadata", "style"):
        text = re.sub(rf"<{element}\b.*?</{element}>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    width = figure.get_size_inches()[0] * PIXELS_PER_INCH
    opening = re.sub(r'\b(width|height)="[^"]*pt" ?', "", text[: text.index(">")])
    opening += f' style="max-width: {1.18 * width:.0f}px" aria-hidden="true"'
    return opening + text[text.index(">") :]


def _yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True) if settings else ""


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", words.DASH if value is None else str(value)


def _replace(path: Path, content: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
