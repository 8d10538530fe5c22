"""The report's page: one HTML file that carries its figures, and the figures as PDF and PNG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.analysis.claims import Finding
from grokscope.reference import is_reference
from grokscope.report import words
from grokscope.report.answer import answer, is_judged, reading_guide
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.figures import FigureFunction, find_figure, list_figures
from grokscope.report.style import RC
from grokscope.report.tables import Table, arms_table, compared, milestones_table
from grokscope.runs.files import write_bytes, write_text
from grokscope.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
PIXELS_PER_INCH = 96  # of CSS
DOTS_PER_INCH = 160  # of a PNG


@dataclass(frozen=True)
class Shown:
    """A figure on the page: inline SVG for wide and for narrow screens."""

    name: str
    drawn: Drawn
    wide: str
    narrow: str


def write_report(study: Study, folder: Path) -> Path:
    """Write ``report.html`` and ``figures/*.pdf, *.png``.

    The page needs no other file, no network and no JavaScript. The same study gives the same
    bytes, wherever the folder is. A figure that cannot be drawn is left out, and a note says why.

    Args:
        study: What to show.
        folder: Where to write; made when it isn't there.

    Returns:
        The path of the page.

    Cost: a quarter of a second for each figure, most of it in matplotlib's formats.
    """
    path = Path(folder) / "report.html"
    figures, notes = draw_figures(study, path.parent)
    write_text(path, render(study, figures, notes))
    return path


def draw_figures(study: Study, folder: Path) -> tuple[list[Shown], list[str]]:
    """Draw the study's figures into ``figures/`` of a folder; a note for each that is left out."""
    target = folder / "figures"
    target.mkdir(parents=True, exist_ok=True)
    shown: list[Shown] = []
    notes = []
    for reference in dict.fromkeys(study.figures):
        name = reference.rpartition(":")[2]
        if name in {figure.name for figure in shown}:
            notes.append(f"The figure {reference} is left out: another one is called {name}, too.")
            continue
        try:
            figure = find_figure(reference, outside=folder)
            wide, vector = _draw(study, figure, f"{name}-wide", narrow=False)
            _, small = _draw(study, figure, f"{name}-narrow", narrow=True)
        except (MissingMeasureError, ValueError) as error:
            notes.append(f"The figure {reference} is left out: {str(error).rstrip('.')}.")
        except Exception as error:
            if not is_reference(reference):
                raise  # one of ours: a mistake that must be seen
            why = f"it failed with {type(error).__name__}: {error}"
            notes.append(f"The figure {reference} is left out: {why}.")
        else:
            _save(wide.figure, target / name)
            shown.append(Shown(name, wide, vector, small))
    asked = {reference.rpartition(":")[2] for reference in study.figures}
    for name in {*list_figures(), *asked} - {figure.name for figure in shown}:
        for suffix in (".pdf", ".png"):  # of an earlier report, and not of this one
            (target / f"{name}{suffix}").unlink(missing_ok=True)
    return shown, notes


def _draw(study: Study, figure: FigureFunction, prefix: str, *, narrow: bool) -> tuple[Drawn, str]:
    """A figure, and its SVG, in the style of the house."""
    from matplotlib import rc_context

    with rc_context(RC):
        drawn = figure(study, Canvas(narrow))
        return drawn, _svg(drawn.figure, prefix)


def render(study: Study, figures: Sequence[Shown], notes: Sequence[str]) -> str:
    """The page as HTML; all text is escaped."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (words.number, words.name_of, words.typeset, words.capital, effect)
    environment.filters |= {function.__name__: function for function in filters}
    rows = compared(study.measured) if study.measured else []
    template = environment.get_template("template.html")
    settings = yaml.safe_dump(dict(study.settings), sort_keys=False, allow_unicode=True)
    contents = {
        "study": study,
        "answer": answer(study, rows),
        "claims": [report for report in study.claims if is_judged(report)],
        "arms": arms_table(rows) if len(rows) > 1 or (rows and not study.claims) else None,
        "guide": reading_guide(study, [figure.drawn.figure for figure in figures]),
        "symbols": SYMBOLS,
        "figures": figures,
        "milestones": milestones_table(study.measured) if study.measured else None,
        "paper": _paper(study),
        "settings": settings if study.settings else "",
        "environment": list(_flat(study.environment)),
        "notes": [*map(str, study.notes), *notes],
        "version": __version__,
    }
    text = _text(template.render(contents, terms=()))
    terms = yaml.safe_load((Path(__file__).parent / "glossary.yaml").read_text(encoding="utf-8"))
    terms = [term for term in terms if re.search(term["pattern"], text)]
    return template.render(contents, terms=terms)


def effect(finding: Finding) -> str:
    """A finding's effect with its interval and unit, as text; a dash where there is none.

    What rests on no seed is not about this run and has no interval.
    """
    if finding.effect != finding.effect:
        return words.DASH
    form: Callable[[float], str] = words.number
    unit = finding.unit
    if unit == "of validation accuracy":
        form, unit = words.signed, "held-out accuracy"
    text = form(finding.effect)
    if finding.seeds:
        text = words.with_interval(text, finding.interval, form)
    return f"{text} {unit}".strip()


def _paper(study: Study) -> Table | None:
    if not study.paper:
        return None
    rows = [[words.number(cell) for cell in row] for row in study.paper]
    preset = study.settings.get("preset", "paper")
    note = ""
    if preset != "paper":
        note = (
            f"This run (preset {preset}) is not in the paper's setting: the values are shown side "
            "by side, but cannot be held against each other."
        )
    title = "The paper's values and those of this run"
    return Table("paper", title, ("", "The paper", "This run"), rows, note=note)


def _save(figure: Figure, stem: Path) -> None:
    """The figure as PDF and PNG, without dates or versions in them."""
    undated = dict.fromkeys(("CreationDate", "Producer", "Creator"))
    for suffix, metadata, dpi in (
        (".pdf", undated, 72), (".png", {"Software": None}, DOTS_PER_INCH),
    ):  # fmt: skip
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=dpi, metadata=metadata)
        write_bytes(stem.with_suffix(suffix), content.getvalue())


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


def _text(page: str) -> str:
    """What can be read on a page."""
    page = re.sub(r"<(style|svg|pre)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", words.DASH if value is None else str(value)
