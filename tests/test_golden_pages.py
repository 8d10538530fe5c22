"""The tables that the pages of committed results show, cell by cell.

`golden/pages.json` was written when numbers moved from captions into tables; each was compared
with the caption before, and CHANGELOG.md lists what a unified rule changed. They change only
together with the runs they come from, or with a rule.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grokscope.report.canvas import Canvas
from grokscope.report.contents import MissingMeasureError, Study
from grokscope.report.figures import find_figure
from grokscope.report.study import collect
from grokscope.report.tables import Table, arms_table, compared, milestones_table
from grokscope.runs.store import Store

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "pages.json").read_text("utf-8"))


def tables_of(study: Study) -> dict[str, list[object]]:
    """Every table of a page by its name: headings, rows and note."""
    tables: list[Table | None] = []
    for name in study.figures:
        try:
            tables += find_figure(name)(study, Canvas()).tables
        except MissingMeasureError:
            continue
    tables += [arms_table(compared(study.measured)), milestones_table(study.measured)]
    return {
        table.name: [list(table.headings), *map(list, table.rows), table.note]
        for table in tables
        if table is not None
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_the_page_of_a_committed_run_shows_the_numbers_that_it_showed(name):
    assert tables_of(collect(Store(ROOT / "results" / name))) == GOLDEN[name]
