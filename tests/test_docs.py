"""What README and docs show runs as it stands."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC = {
    "grokscope", "grokscope.interventions", "grokscope.measures", "grokscope.results",
    "grokscope.spec", "grokscope.tasks",
}  # fmt: skip
GROKSCOPE = Path(sys.executable).with_name("grokscope")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that are in a language."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return fenced.findall(page.read_text("utf-8"))


def commands(page: Path) -> list[list[str]]:
    """The grokscope commands that a page shows, as arguments."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["grokscope"]]


def called(where: Path, *command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_library_use_of_the_readme_runs(tmp_path):
    program = "\n".join(blocks(ROOT / "README.md", "python"))
    printed = called(tmp_path, sys.executable, "-c", program)
    assert "relative_flatness" in printed
    assert "ncc" in printed


@pytest.mark.slow
def test_your_own_measure_task_and_experiment_run_as_written(tmp_path):
    pytest.importorskip("sklearn")
    page = ROOT / "docs" / "your-own.md"
    reading = ""
    for block in blocks(page, "python"):
        named = re.match(r"# file: (\w+\.py)", block)
        if named:
            with (tmp_path / named[1]).open("a", encoding="utf-8") as file:
                file.write(block)
        else:
            reading += block
    assert -1 <= float(called(tmp_path, sys.executable, "my_measure.py")) <= 1
    for command in commands(page):
        called(tmp_path, GROKSCOPE, *command)
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()
    table = called(tmp_path, sys.executable, "-c", reading)
    assert {"plain", "decayed", "train", "validation"} <= set(table.split())


@pytest.mark.slow
def test_a_training_on_two_processes_runs_as_written(tmp_path):
    programs = blocks(ROOT / "docs" / "your-own.md", "python")
    (own,) = [each for each in programs if each.startswith("# file: my_training.py")]
    (tmp_path / "my_training.py").write_text(own, encoding="utf-8")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    printed = called(tmp_path, *torchrun, "--nproc-per-node", "2", "my_training.py")
    assert [line.split()[:2] for line in printed.splitlines()] == [[e, "200"] for e in "012"]


def test_a_sweep_in_python_is_made_as_written(tmp_path):
    program = "\n".join(blocks(ROOT / "docs" / "sweeps.md", "python"))
    arms = called(tmp_path, sys.executable, "-c", program).splitlines()
    assert [each.rpartition(", ")[2] for each in arms] == ["lr=0.001", "lr=0.003"]


def without(command: list[str], *options: str) -> list[str]:
    """A command without options that say where it runs, not what."""
    kept = list(command)
    for option in options:
        if option in kept:
            where = kept.index(option)
            del kept[where : where + 2]
    return kept


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_settings_that_a_page_names_exist(page, tmp_path):
    for command in commands(page):
        if command[0] == "run" and ":" not in command[1] and not command[1].endswith("yaml"):
            called(tmp_path, GROKSCOPE, "show", *without(command[1:], "--out", "--on", "--address"))
        if command[0] == "sweep":
            called(
                tmp_path, GROKSCOPE, *command, *([] if "--dry-run" in command else ["--dry-run"])
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    for target in targets:
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_the_readme_names_the_commands_that_there_are():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = re.findall(r"^make (\w+)", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_imports_only_what_is_public(page):
    for block in blocks(page, "python"):
        if ">>>" in block:
            continue
        try:
            tree = ast.parse(block)
        except SyntaxError:  # a signature of the API page, not a program
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("grokscope"):
                assert node.module in PUBLIC
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert name.name in module.__all__, f"{node.module}.{name.name}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_tab_completion_shows_what_is_public_and_nothing_else(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None
        assert name == "grokscope" or not public.startswith("_")
