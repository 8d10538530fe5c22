"""Writes docs/measures.md: every measure, from its record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grokscope.measures import Measure, records

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# The measures, exactly

Made by `make docs` from the records that stand beside the functions in `grokscope.measures`;
`grokscope measures NAME` prints one of them. Names are those in a `Measurement` and in
`metrics.parquet`; the functions, with shapes and errors, are in [api.md](api.md).

Features φ `[n, d]`, logits z = Wφ + b `[n, C]`, rows of the head w_c, p = softmax(z), class means
μ_c. Unless a note says otherwise, a measure is taken in evaluation mode on a frozen subset and
accumulated in float64.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD, "| name | what it is | unit | direction |", "|---|---|---|---|"]
    for name, measure in records().items():
        cells = (f"[`{name}`](#{name})", measure.title, measure.unit, measure.direction)
        parts.append(f"| {' | '.join(cells)} |")
    for measure in records().values():
        parts += ["", *_section(measure)]
    return "\n".join(parts) + "\n"


def _section(measure: Measure) -> Iterator[str]:
    symbol = f" ({measure.symbol})" if measure.symbol else ""
    title = measure.title[0].upper() + measure.title[1:]
    yield f"## {measure.name}"
    yield ""
    yield f"{title}{symbol}: {measure.formula}."
    if measure.note:
        yield ""
        yield measure.note
    yield ""
    rows = {
        "unit": measure.unit,
        "range": measure.range,
        "direction": measure.direction,
        "needs": ", ".join(measure.needs),
        "cost": measure.cost,
        "source": measure.source,
    }
    yield from (f"- {name}: {text}" for name, text in rows.items() if text)


if __name__ == "__main__":
    (ROOT / "docs" / "measures.md").write_text(page(), encoding="utf-8")
