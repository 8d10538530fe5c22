"""Colours, dashes, fonts and lengths that all figures share; lengths are in inches.

Colours are Okabe and Ito's, darkened where they carry text; lines that could be confused differ
in their dashes too, so that a grey print still tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

BLUE, VERMILION, GREEN, PURPLE, OCHRE, INK, GREY = (
    "#0072B2", "#C24E00", "#00785A", "#A8528A", "#A86E00", "#222222", "#707070",
)  # fmt: skip
FAINT, RULE = "#666666", "#E6E6E3"  # text that may be overlooked; grid lines
MEMORISED, GENERALISED = "#F3EDDF", "#DCEBF3"  # shaded spans
SOLID, DASHED, DOTTED = "-", (0, (5, 1.3)), (0, (1.2, 1.1))

WIDE, NARROW = 8.4, 3.75  # of a figure; the narrow form is for phones, its text no smaller
TEXT, SMALL, HEADING = 8.5, 7.5, 9.5  # points
THIN, THICK = 0.6, 1.9  # lines of single seeds and of their median, in points

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "ytick.major.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # names of arms and measures are text, whatever signs they hold
    "axes.unicode_minus": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "grokscope",
    "pdf.fonttype": 42,
    "path.simplify": True,
}


@dataclass(frozen=True)
class LineStyle:
    """How a line, or the points of an arm, are drawn."""

    colour: str  # of line, marker and name
    dashes: Any = SOLID  # as matplotlib takes them
    marker: str = "o"  # as matplotlib takes it


# By an arm's place among those of a panel. Okabe and Ito's and three dark ones, chosen among
# others by the least difference of any two under simulated colour blindness; all dark enough for
# text on white.
ARM_STYLES = (
    LineStyle(INK, SOLID, "o"),
    LineStyle(VERMILION, (0, (8, 1.2)), "s"),
    LineStyle(BLUE, (0, (4.5, 1.8)), "^"),
    LineStyle(GREEN, (0, (2, 1.4)), "D"),
    LineStyle(PURPLE, (0, (0.9, 1.2)), "v"),
    LineStyle("#7A4A1E", (0, (7, 1.6, 1, 1.6)), "P"),
    LineStyle("#332288", (0, (4, 1.4, 1, 1.4, 1, 1.4)), "X"),
    LineStyle("#882255", (0, (10, 4)), "*"),
)


def gradient(count: int) -> list[LineStyle]:
    """Styles of very many arms, coloured by their place among them, from dark to light."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    spread = colormaps["viridis"]
    return [LineStyle(to_hex(spread(0.78 * place / max(count - 1, 1)))) for place in range(count)]


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = TEXT, bold: bool = False) -> float:
    """Inches that a text takes; without a renderer, so the same for every format."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def shortened(name: str, width: float, size: float = TEXT, *, bold: bool = False) -> str:
    """A name as it stands, or its beginning where it is wider than so many inches."""
    if text_width(name, size, bold) <= width:
        return name
    while name and text_width(f"{name}…", size, bold) > width:
        name = name[:-1]
    return f"{name.rstrip()}…"
