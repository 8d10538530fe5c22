"""The page in a real browser, wide and on a phone: nothing is lost, and nothing sticks out.

Runs where Debian's ``chromium`` and ``chromium-driver`` are; `make check` installs them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from contributed import run_contributed
from grokscope.report.page import write_report
from grokscope.report.study import collect
from grokscope.runs.store import Store

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDTHS = (1280, 400)
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-sync",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="there is no Chromium with its driver: apt-get install chromium chromium-driver",
    ),
]

# What a reader sees: of each figure its picture and caption, of each table its cells; and whether
# the page, or something on it that does not scroll in a box of its own, is wider than the screen.
SEEN = """
const shown = (element) => {
  const box = element.getBoundingClientRect();
  return element.checkVisibility({visibilityProperty: true}) && box.width > 0 && box.height > 0;
};
const inBox = (element) => {
  for (let above = element.parentElement; above; above = above.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(above).overflowX)) return true;
  return false;
};
document.querySelectorAll('details').forEach((details) => { details.open = true; });
const width = document.documentElement.clientWidth;
const figures = {}, tables = [];
for (const figure of document.querySelectorAll('figure')) {
  const pictures = [...figure.querySelectorAll('svg')].filter(shown);
  figures[figure.id] = {
    pictures: pictures.length,
    width: Math.max(0, ...pictures.map((svg) => svg.getBoundingClientRect().width)),
    caption: figure.querySelector('figcaption').innerText.trim(),
  };
}
for (const table of document.querySelectorAll('table')) {
  const cells = [...table.querySelectorAll('td, th')].filter((cell) => cell.textContent.trim());
  tables.push({
    name: table.closest('[id]').id,
    headings: [...table.querySelectorAll('thead th')].map((cell) => cell.textContent.trim()),
    cells: cells.filter((cell) => shown(cell)).map((cell) => cell.textContent.trim()),
  });
}
const wide = [...document.querySelectorAll('main *, footer *')].filter(
  (element) => shown(element) && !inBox(element)
    && element.getBoundingClientRect().right > width + 1);
return {
  width, scrolled: document.documentElement.scrollWidth,
  figures, tables, wide: wide.map((element) => element.outerHTML.slice(0, 120)),
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["grokking", "suppress-flatness", "two arms of a user's"])
def page(request, tmp_path_factory) -> Path:
    """The page of a committed run, or of the experiment that CONTRIBUTING shows."""
    folder = tmp_path_factory.mktemp("page")
    if request.param.startswith("two arms"):
        return run_contributed(folder) / "report.html"
    results = ROOT / "results"
    beside = Store(results / "grokking-paper") if request.param == "grokking" else None
    return write_report(collect(Store(results / request.param), beside), folder)


def seen(browser: Any, page: Path, width: int) -> dict[str, Any]:
    """What the browser shows of a page on a screen of that width."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.resolve().as_uri())
    found: dict[str, Any] = browser.execute_script(SEEN)
    assert found["width"] == width
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(browser, page, width):
    found = seen(browser, page, width)
    assert found["scrolled"] <= width
    assert not found["wide"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_browser_has_nothing_to_complain_of(browser, page, width):
    browser.get_log("browser")
    seen(browser, page, width)
    assert browser.get_log("browser") == []


def test_every_figure_and_every_table_is_there_at_both_widths(browser, page):
    wide, narrow = (seen(browser, page, width) for width in WIDTHS)
    assert wide["figures"].keys() == narrow["figures"].keys()
    assert wide["figures"]
    for name, figure in [*wide["figures"].items(), *narrow["figures"].items()]:
        assert name.startswith("figure-")
        assert figure["pictures"] == 1, name
        assert figure["caption"]
    assert all(figure["width"] >= 300 for figure in narrow["figures"].values())
    assert len(wide["tables"]) == len(narrow["tables"]) >= 2
    for one, other in zip(wide["tables"], narrow["tables"], strict=True):
        assert one["name"] == other["name"] != ""
        assert one["cells"], one["name"]
        # On a phone the rows of a table carry its headings as labels instead.
        assert set(one["cells"]) - set(other["cells"]) <= set(one["headings"]), one["name"]
