"""What the committed results say: verdicts, effects, intervals and the numbers in captions.

`golden/before.json` was written by the code as it stood before the rooms were rebuilt. These values
change only together with the runs they come from, or with a rule, which the CHANGELOG then lists.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from grokscope.report.study import collect
from grokscope.runs.store import Store

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "before.json").read_text("utf-8"))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_committed_run_still_says_what_it_said(name):
    study = collect(Store(ROOT / "results" / name))
    found = [finding for report in study.claims for finding in (report.headline, *report.others)]
    assert len(found) == len(GOLDEN[name]["findings"])
    for finding, frozen in zip(found, GOLDEN[name]["findings"], strict=True):
        for field in ("claim", "basis", "context", "verdict", "unit", "seeds"):
            assert getattr(finding, field) == frozen[field]
        numbers = [finding.effect, *finding.interval]
        for number, value in zip(numbers, [frozen["effect"], *frozen["interval"]], strict=True):
            assert number == pytest.approx(math.nan if value is None else value, 1e-6, nan_ok=True)
