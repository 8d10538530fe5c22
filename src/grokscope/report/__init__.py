"""Reports: a `Study` becomes one self-contained page and its figures.

`write_report` writes them; `grokscope.report.figures.FIGURES` is where figures are added.
"""

from __future__ import annotations

from grokscope.report.contents import Counterpart, Study
from grokscope.report.page import write_report

__all__ = ["Counterpart", "Study", "write_report"]
