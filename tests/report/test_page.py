"""The page stands alone, says what was found and can be trusted with any text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_arms import arms_study
from made_study import beside, claims, metrics, results, study

from grokscope.report import Study, write_report
from grokscope.report.tables import milestones_table
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
        verdict = report.headline.verdict.capitalize()
        assert f"{verdict}: {report.statement} Claim {report.claim}, three seeds" in page.text
        for finding in (report.headline, *report.others):
            assert finding.verdict in page.text
            assert typeset(finding.reason) in page.text
    for seed in (1, 42, 15213):
        assert f"(seed {seed})" in page.text
    assert "✗ contradicted" in page.text
    assert "✓ supported" in page.text
    assert "−2,130 (−2,290 to −1,970) steps" in page.text


def test_the_sections_come_in_the_order_of_a_readers_questions(page: Page) -> None:
    wanted = [
        "answer", "figure", "milestones", "claims", "figures", "reading", "paper", "glossary",
        "settings", "reproduce", "cite",
    ]  # fmt: skip
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
    whole = study(
        (1,), name=evil, title=evil, question=evil, notes=(evil,), claims=hostile,
        results=results(frame, (1,)), paper=((evil, evil, evil),), settings={evil: evil},
        environment={evil: {evil: evil}}, counterpart=beside(frame, evil),
        figures=("grokking", evil), command=evil, date=evil,
    )  # fmt: skip
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img"}
    assert not page.wrong
    assert evil in page.text


def test_a_figure_without_its_measures_is_left_out_with_a_note(tmp_path: Path) -> None:
    stale = tmp_path / "figures" / "confidence.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier report")
    gone = ("nc", "angle_deviation")
    whole = study(
        (1,), lambda frame: frame[~frame.measure.str.startswith(gone)],
        figures=("collapse", "grokking", "nonesuch"),
    )  # fmt: skip
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8"))
    assert "The figure collapse is left out: none of its measures was taken." in page.text
    assert "The figure nonesuch is left out: there is no figure 'nonesuch'." in page.text
    assert {each.stem for each in (tmp_path / "figures").iterdir()} == {"grokking"}


def test_a_study_in_which_nothing_has_run_yet_has_a_page(tmp_path: Path) -> None:
    whole = study(change=lambda frame: frame.iloc[:0], claims=())
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8"))
    assert "Nothing has been measured yet." in page.text
    assert "The figure grokking is left out: nothing has been measured yet." in page.text


def test_milestones_that_were_not_reached_say_so_and_medians_say_of_how_many() -> None:
    def lost(frame: pd.DataFrame) -> pd.DataFrame:
        low = (frame.measure == "accuracy") & (frame.split == "validation") & (frame.seed == 1)
        frame.loc[low, "value"] = 0.2
        return frame

    table = milestones_table(study((1, 42), lost).arms)
    assert table is not None
    first, second, median = table.rows
    assert first[0] == "seed 1"
    assert first[2:] == ("not reached", "not reached", "–")
    assert median[0] == "median"
    assert median[3] == f"{second[3]}\n1 of 2 seeds"


def test_arms_that_do_not_generalise_late_have_no_milestones() -> None:
    assert milestones_table(arms_study(seeds=(1,)).arms) is None


PAPER = "2509.17738"


def text_of(whole: Study, folder: Path) -> str:
    return Page(write_report(whole, folder).read_text(encoding="utf-8")).text


def test_the_paper_is_cited_only_where_the_experiment_is_the_papers(tmp_path: Path) -> None:
    mine = arms_study(("baseline", "cap 20"), (1, 42), name="mine", figures=("outcomes",))
    text = text_of(mine, tmp_path)
    assert PAPER not in text
    assert "paper" not in text[: text.index("All settings, as YAML")].lower()
    assert PAPER in text_of(replace(mine, cites_paper=True), tmp_path)


def test_a_smoke_test_gives_no_verdicts_and_says_so_at_the_top(tmp_path: Path) -> None:
    page = Page(
        write_report(study(smoke_test=True, claims=(), figures=()), tmp_path).read_text("utf-8")
    )
    assert page.ids[0] == "smoke-test"
    assert page.text.count("no claim is judged") == 1
    assert page.text.lower().count("smoke test") == 1
    assert not re.search("supported|contradicted|undecided", page.text)


def test_synthetic_heads_have_no_interval_and_are_said_to_be_the_same_in_every_run(
    tmp_path: Path,
) -> None:
    headline = claims()[0].headline
    synthetic = replace(headline, basis="exact simplex heads", seeds=0, interval=(0.1, 3.7))
    report = replace(claims()[0], others=(replace(synthetic, effect=0.301),))
    text = text_of(study(claims=[report], figures=()), tmp_path)
    said = "exact simplex heads a check on synthetic heads, the same in every run ✓ supported 0.301"
    assert f"{said} steps" in text
    assert "3.70" not in text


def test_every_figure_and_table_has_an_id_and_both_forms(page: Page, written: Path) -> None:
    for name in study().figures:
        assert f"figure-{name}" in page.ids
    for name in ("milestones", "claims", "paper", "grokking", "onsets", "plateau"):
        assert f"table-{name}" in page.ids
    text = written.read_text(encoding="utf-8")
    assert text.count('<div class="wide">') == text.count('<div class="narrow">')
    style = text[text.index("<style>") : text.index("</style>")]
    hidden = re.findall(r"([^{}]*)\{[^{}]*display: none", style)
    assert {rule.strip() for rule in hidden} == {".narrow", ".wide", ".stack td:empty"}


def test_the_glossary_explains_what_the_page_says_and_no_more(page: Page, tmp_path: Path) -> None:
    whole = page.text[page.text.index("Glossary") :]
    for term in ("κ (kappa)", "NCC, neural collapse", "Matched loss", "Published value", "Seed"):
        assert term in whole
    bare = Study(study().results, title="t", figures=())
    text = text_of(replace(bare, results=results(only_accuracy(), (1,))), tmp_path)
    assert "Held out" in text
    assert "Matched loss" not in text
    assert "Published value" not in text


def only_accuracy() -> pd.DataFrame:
    frame = metrics((1,))
    return frame[frame.measure == "accuracy"]


MINE = """
from grokscope.report import Drawn
from grokscope.report.sheet import Row

def mine(study, canvas):
    axes = canvas.sheet([Row(1.5)]).grid[0][0]
    for arm in study.arms:
        axes.plot(list(arm.runs), list(arm.levels("accuracy").values()))
    return Drawn(canvas.figure, "Of my own", "Final training accuracy by seed.")

def broken(study, canvas):
    return 1 / 0
"""


def test_a_users_figure_is_drawn_from_its_file(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path / "code")
    Path("mine.py").write_text(MINE)
    whole = study(figures=("mine.py:mine", "mine.py:broken", "gone.py:figure"), claims=())
    page = Page(write_report(whole, tmp_path / "results").read_text(encoding="utf-8"))
    assert "figure-mine" in page.ids
    assert "Of my own. Final training accuracy by seed." in page.text
    assert (tmp_path / "results" / "figures" / "mine.png").is_file()
    assert "mine.py:broken is left out: it failed with ZeroDivisionError" in page.text
    assert "gone.py:figure is left out: there is no file gone.py." in page.text


def test_no_code_is_run_from_a_folder_of_results(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('this was run')\n")
    for here in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(here)
        name = f"{(tmp_path / 'evil.py').relative_to(here)}:figure"
        text = text_of(study(figures=(name, "evil:figure"), claims=()), tmp_path)
        assert "from which no code is run" in text


def test_the_commands_and_names_of_other_runs_are_as_recorded(page: Page) -> None:
    assert "Run it again grokscope run grokking --seeds 1,42,15213" in page.text


def test_one_number_stands_for_one_thing(page: Page) -> None:
    table = milestones_table(study().arms)
    assert table is not None
    medians = dict(zip(table.headings, table.rows[-1], strict=True))
    onsets = page.text[page.text.index("In order of their medians") :]
    assert f"Training data memorised {medians['Memorised']} (" in onsets
    assert f"Generalisation begins {medians['Generalisation begins']} (" in onsets


def test_a_page_of_a_thousand_runs_takes_seconds(tmp_path: Path) -> None:
    arms = ("baseline", *(f"rate {place}" for place in range(99)))
    whole = arms_study(arms, range(10))
    start = time.process_time()
    write_report(whole, tmp_path)
    assert time.process_time() - start < 30


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
