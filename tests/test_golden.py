"""What the committed results say: claims, milestones, correlations, onsets, the paper's values.

`golden/results.json` was written by the code as it stood before its rooms were rebuilt. What the
one rule for a level then changed is listed in CHANGELOG.md, with the values before. They change
only together with the runs they come from, or with a rule, which the CHANGELOG then lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from grokscope.analysis import (
    Results,
    evaluate_claims,
    onset_table,
    partial_correlations,
    plateau_table,
)
from grokscope.report.study import value_here
from grokscope.runs.store import Store

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "results.json").read_text("utf-8"))
TABLES = {
    "milestones": plateau_table,
    "correlations": partial_correlations,
    "onsets": onset_table,
}

KEYS = ("arm", "seed", "measure", "split", "with", "given", "window")  # what names a row


@cache
def results_of(name: str) -> Results:
    return Results.read(Store(ROOT / "results" / name))


def close(numbers: Sequence[Any], frozen: Sequence[Any]) -> bool:
    """Whether numbers are those that were frozen, among which null stands for NaN."""
    expected = [math.nan if value is None else value for value in frozen]
    return list(numbers) == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_claims_on_a_committed_run_are_answered_as_they_were(name):
    reports = evaluate_claims(results_of(name))
    found = [finding for report in reports for finding in (report.headline, *report.others)]
    assert len(found) == len(GOLDEN[name]["findings"])
    for finding, frozen in zip(found, GOLDEN[name]["findings"], strict=True):
        for field in ("claim", "basis", "context", "verdict", "unit", "seeds", "why"):
            assert getattr(finding, field) == frozen[field], (field, frozen)
        assert close([finding.effect, *finding.interval], [frozen["effect"], *frozen["interval"]])
        assert [seed for seed, _ in finding.per_seed] == [seed for seed, _ in frozen["per_seed"]]
        assert close(
            [effect for _, effect in finding.per_seed],
            [effect for _, effect in frozen["per_seed"]],
        )


FROZEN = [(name, table) for name in GOLDEN for table in TABLES if GOLDEN[name][table]]


@pytest.mark.parametrize(("name", "table"), FROZEN)
def test_the_tables_of_a_committed_run_hold_the_numbers_that_they_held(name, table):
    frozen = GOLDEN[name][table]
    found = TABLES[table](results_of(name)).to_dict("records")
    numbers = [column for column in frozen[0] if column not in KEYS]
    rows = {tuple(row.get(key) for key in KEYS): row for row in found}
    assert len(rows) == len(found) == len(frozen)
    for row in frozen:
        match = rows[tuple(row.get(key) for key in KEYS)]
        assert close([match[name] for name in numbers], [row[name] for name in numbers]), row


@pytest.mark.parametrize("name", [name for name in GOLDEN if GOLDEN[name]["paper"]])
def test_the_values_beside_the_papers_are_those_that_they_were(name):
    results = results_of(name)
    rows = results.experiment.paper
    assert [[row.what, row.value] for row in rows] == [row[:2] for row in GOLDEN[name]["paper"]]
    for row, (_, _, frozen) in zip(rows, GOLDEN[name]["paper"], strict=True):
        value = value_here(row, results)
        assert (
            value == frozen
            if frozen is None or isinstance(frozen, str)
            else close([value], [frozen])
        )
