"""The page stands alone, says what was found and can be trusted with any text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_study import claims, metrics, study

from grokscope.report import Counterpart, write_report
from grokscope.report.page import milestone_table
from grokscope.report.words import typeset

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A page read tag by tag: which never close, which ids repeat, what is linked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def test_the_page_is_well_formed(page: Page) -> None:
    assert not page.open
    assert not page.wrong
    assert len(page.ids) == len(set(page.ids))


def test_the_page_needs_nothing_but_itself(written: Path, page: Page) -> None:
    outside = [link for link in page.links if not link.startswith(("#", "data:image/png;"))]
    assert outside == ["https://arxiv.org/abs/2509.17738"]
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    text = written.read_text(encoding="utf-8")
    assert all(each == "#" for each in re.findall(r"url\((.)", text))
    assert "script" not in page.tags
    assert not re.search(r"@import|\bon(load|click|error)=", text)
    assert written.stat().st_size < 3_000_000


def test_every_reference_within_a_figure_is_to_that_figure(written: Path, page: Page) -> None:
    named = set(re.findall(r"url\(#([^)]*)\)", written.read_text(encoding="utf-8")))
    assert named
    assert named <= set(page.ids)


def test_the_page_tells_question_answer_verdicts_and_seeds(page: Page) -> None:
    whole = study()
    assert whole.question in page.text
    for report in whole.claims:
        assert report.statement in page.text
        for finding in (report.headline, *report.others):
            assert finding.verdict in page.text
            assert typeset(finding.reason) in page.text
    for seed in (1, 42, 15213):
        assert f"(seed {seed})" in page.text
    assert "✗ contradicted" in page.text
    assert "✓ supported" in page.text
    assert "−2,130 (−2,290 to −1,970) steps" in page.text


def test_the_sections_come_in_the_order_of_a_readers_questions(page: Page) -> None:
    wanted = ["answer", "figure", "milestones", "figures", "paper", "settings", "reproduce", "cite"]
    assert [each for each in page.ids if each in wanted] == wanted


def test_the_page_shows_settings_environment_notes_and_command(page: Page) -> None:
    for text in ("train_fraction: 0.4", "device.name", "One run spiked", "2026-11-24"):
        assert text in page.text
    assert "grokscope run grokking --seeds 1,42,15213" in page.text
    assert "about 3.3e5, at 6e3 to 1e4 steps 312,000" in page.text


def test_every_figure_is_there_as_vector_and_as_pixels(written: Path) -> None:
    folder = written.parent / "figures"
    assert {each.stem for each in folder.iterdir()} == set(study().figures)
    for name in study().figures:
        pdf, png = (folder / f"{name}{suffix}" for suffix in (".pdf", ".png"))
        assert pdf.read_bytes().startswith(b"%PDF")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert min(pdf.stat().st_size, png.stat().st_size) > 8_000


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=http://x.test/a>&"
    hostile = [
        replace(claims()[0], statement=evil, headline=replace(claims()[0].headline, reason=evil))
    ]
    frame = metrics((1,)).assign(arm=evil)
    beside = Counterpart(evil, frame)
    whole = study(
        (1,), name=evil, title=evil, question=evil, notes=(evil,), claims=hostile, metrics=frame,
        paper=((evil, evil, evil),), settings={evil: evil}, environment={evil: {evil: evil}},
        counterpart=beside, figures=("grokking", evil), command=evil, date=evil,
    )  # fmt: skip
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img"}
    assert not page.wrong
    assert evil in page.text


def test_a_figure_without_its_measures_is_left_out_with_a_note(tmp_path: Path) -> None:
    stale = tmp_path / "figures" / "confidence.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier report")
    frame = metrics((1,))
    frame = frame[~frame.measure.str.startswith("nc")]
    whole = study((1,), metrics=frame, figures=("collapse", "grokking", "nonesuch"))
    whole = replace(whole, metrics=frame[frame.measure != "angle_deviation"])
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8"))
    assert "The figure collapse is left out: none of its measures was taken." in page.text
    assert "There is no figure named nonesuch" in page.text
    assert {each.stem for each in (tmp_path / "figures").iterdir()} == {"grokking"}


def test_a_study_in_which_nothing_has_run_yet_has_a_page(tmp_path: Path) -> None:
    whole = study(metrics=metrics((1,)).iloc[:0], claims=(), milestones=pd.DataFrame())
    whole = replace(whole, onsets=whole.onsets.iloc[:0], correlations=pd.DataFrame())
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8"))
    assert "No claim was tested in this run." in page.text
    assert "The figure grokking is left out: nothing has been measured yet." in page.text


def test_milestones_that_were_not_reached_say_so() -> None:
    frame = pd.DataFrame(
        {"arm": "grokking", "seed": [1, 42], "memorised": [458.0, 440.0], "onset": [None, 2250.0]}
    )
    headings, rows = milestone_table(frame)
    assert headings == ["seed", "memorised", "generalisation begins"]
    assert rows == [
        ["1", "458", "not reached"],
        ["42", "440", "2,250"],
        ["median", "449", "2,250"],
    ]


def test_the_same_study_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from made_study import study;"
        "from grokscope.report import write_report;"
        "write_report(study((1,), figures=('grokking', 'onsets')), Path(sys.argv[1]))"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1] / "src")])
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": paths}
        command = [sys.executable, "-c", code, str(tmp_path / salt)]
        subprocess.run(command, check=True, env=environment)
    files = sorted(each.relative_to(tmp_path / "1") for each in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()
