"""The files that CONTRIBUTING shows, one for each wish, do what it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from contributed import WISHES, run_contributed
from test_docs import GROKSCOPE, called


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the page's files, in which its experiment has run."""
    folder: Path = tmp_path_factory.mktemp("contributing")
    run_contributed(folder)
    return folder


def test_every_wish_is_one_file(folder):
    assert {path.name for path in folder.glob("*.py")} == set(WISHES)


def test_the_measure_is_stored_for_every_arm_and_split(folder):
    files = (folder / "runs" / "short-features" / "segments").glob("*/metrics.parquet")
    rows = pd.concat([pd.read_parquet(path) for path in files])
    spread = rows[rows["measure"] == "spread"]
    assert set(spread["split"].astype(str)) == {"train", "validation"}
    assert (spread["value"] > 0).all()
    assert (rows["measure"] == "penalty_spread").any()


def test_the_claim_is_judged_and_the_figure_is_drawn(folder):
    page = (folder / "runs" / "short-features" / "report.html").read_text("utf-8")
    assert "A network whose features are kept short" in page
    assert 'id="figure-lengths' in page
    shown = called(folder, GROKSCOPE, "claims", "runs/short-features")
    assert "short" in shown
    assert "supported" in shown or "undecided" in shown


def test_the_report_finds_claim_and_figure_again(folder):
    page = folder / "runs" / "short-features" / "report.html"
    before = page.read_bytes()
    page.unlink()
    called(folder, GROKSCOPE, "report", "runs/short-features")
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "wrong", "meant"),
    [("claims", "tight.py:tihgt", "tight"), ("figures", "outcome", "outcomes")],
)
def test_a_wrong_name_is_refused_before_work_starts(folder, field, wrong, meant):
    text = (folder / "study.py").read_text("utf-8")
    text = re.sub(rf"(    {field}=\()[^)]*\)", rf'\g<1>"{wrong}",)', text)
    (folder / f"wrong_{field}.py").write_text(text, encoding="utf-8")
    command = [GROKSCOPE, "run", f"wrong_{field}.py:experiment", "--out", "nothing"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert wrong.rpartition(":")[2] in done.stderr
    assert meant in done.stderr
    assert not (folder / "nothing").exists()
