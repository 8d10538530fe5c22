"""Objects of the user's own are found by file or module, and errors say where to look."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pickle
import sys
from pathlib import Path

import pytest

from grokscope.reference import is_reference, load


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, and a module table and search path that are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("math:pi", True), ("a/b.py:c", True), ("grokking", False), ("a/b.py", False), ("", False)],
)
def test_a_reference_has_a_colon(text, expected):
    assert is_reference(text) is expected


def test_an_object_of_an_installed_module_is_that_object():
    assert load("math:pi") is math.pi
    assert load("os.path:join") is os.path.join
    assert load("collections:OrderedDict") is collections.OrderedDict


def test_a_file_is_found_from_here_and_by_its_full_path(apart):
    write("studies/own study.py", "answer = 42\n")
    assert load("studies/own study.py:answer") == 42
    assert load(f"{apart}/studies/own study.py:answer") == 42


def test_the_colon_that_counts_is_the_last():
    write("a:b/own.py", "answer = 42\n")
    assert load("a:b/own.py:answer") == 42


def test_a_package_of_this_folder_is_found():
    write("own_package/__init__.py", "")
    write("own_package/tasks.py", "answer = 42\n")
    assert load("own_package.tasks:answer") == 42


def test_a_package_of_this_folder_does_not_hide_an_installed_one():
    write("statistics.py", "raise RuntimeError('the wrong one')\n")
    sys.modules.pop("statistics", None)
    assert load("statistics:mean")([1, 3]) == 2


def test_a_file_imports_what_lies_beside_it():
    write("far/own_helpers_beside.py", "answer = 42\n")
    write("far/study.py", "from own_helpers_beside import answer\n")
    assert load("far/study.py:answer") == 42


def test_two_files_of_one_name_are_two():
    write("a/study.py", "answer = 1\n")
    write("b/study.py", "answer = 2\n")
    assert [load("a/study.py:answer"), load("b/study.py:answer")] == [1, 2]


def test_a_file_may_hold_dataclasses_and_what_is_made_of_them_can_be_pickled():
    write(
        "study.py",
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Point:\n"
        "    x: int\n"
        "point = Point(3)\n",
    )
    point = load("study.py:point")
    assert dataclasses.asdict(pickle.loads(pickle.dumps(point))) == {"x": 3}


WRONG = [
    ("study", "'study': write package.module:name or path/to/file.py:name"),
    (":name", "':name': write package.module:name or path/to/file.py:name"),
    ("study.py:", "'study.py:': write package.module:name or path/to/file.py:name"),
    ("study.py:answer", "there is no file study.py"),
    ("no_such_module_here:x", "no_such_module_here cannot be imported: ModuleNotFoundError"),
    ("os.no_such_module:x", "os.no_such_module cannot be imported: ModuleNotFoundError"),
    (".own:x", ".own cannot be imported: TypeError"),
    ("math:pie", "math has no 'pie'. Did you mean pi? It has: "),
]


@pytest.mark.parametrize(("reference", "problem"), WRONG, ids=[each[0] for each in WRONG])
def test_a_reference_to_nothing_says_what_is_missing(reference, problem):
    with pytest.raises(ValueError) as refused:
        load(reference)
    assert str(refused.value).startswith(problem)


def test_what_a_file_has_instead_is_listed_without_what_is_private():
    write("study.py", "experiment = 1\ncontrol = 2\n_secret = 3\n")
    with pytest.raises(ValueError) as refused:
        load("study.py:experimnt")
    assert str(refused.value) == (
        "study.py has no 'experimnt'. Did you mean experiment? It has: experiment, control"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\nimport no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_mod"),
        ("x = (\n", "SyntaxError: '(' was never closed (study.py, line 1)"),
        ("x = 1\n\nx = y\n", "NameError: name 'y' is not defined (line 3)"),
        ("def f():\n    raise KeyError('a\\nb')\n\nf()\n", "KeyError: 'a\\nb' (line 2)"),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one two (line 1)"),
    ],
    ids=["import", "syntax", "name", "within a function", "of two lines"],
)
def test_a_file_that_fails_says_how_and_in_which_line(text, problem):
    write("study.py", text)
    with pytest.raises(ValueError) as refused:
        load("study.py:experiment")
    assert str(refused.value).startswith(f"study.py cannot be imported: {problem}")
    assert refused.value.__cause__ is not None


def test_a_file_is_executed_once_until_it_changes():
    text = "from pathlib import Path\nwith Path('log').open('a') as log:\n    log.write('x')\n"
    write("study.py", f"{text}answer = 1\n")
    assert [load("study.py:answer") for _ in range(3)] == [1, 1, 1]
    assert load("./study.py:answer") == 1
    assert Path("log").read_text() == "x"
    write("study.py", f"{text}answer = 22\n")
    assert load("study.py:answer") == 22
    assert Path("log").read_text() == "xx"


def test_a_file_that_is_touched_is_executed_again():
    path = write("study.py", "answer = []\n")
    before = load("study.py:answer")
    assert load("study.py:answer") is before
    os.utime(path, (1, 1))
    assert load("study.py:answer") is not before


def test_of_two_files_of_one_name_the_one_asked_for_last_can_be_pickled():
    for folder in "ab":
        write(f"{folder}/study.py", f"class Point:\n    folder = {folder!r}\n")
    for folder in "aba":
        point = load(f"{folder}/study.py:Point")
        assert pickle.loads(pickle.dumps(point)).folder == folder


def test_a_module_that_fails_says_how():
    write("own_broken_module.py", "1 / 0\n")
    with pytest.raises(ValueError, match="own_broken_module cannot be imported: ZeroDivisionErr"):
        load("own_broken_module:x")


def test_a_file_can_be_mended_and_loaded_again():
    write("study.py", "answer = 1 / 0\n")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        load("study.py:answer")
    write("study.py", "answer = 1 / 1  # mended\n")
    assert load("study.py:answer") == 1


@pytest.mark.parametrize("reference", ["results/own.py:answer", "results/../results/own.py:answer"])
def test_no_code_is_run_that_lies_in_a_folder_of_results(reference):
    write("results/own.py", "raise SystemExit('this code was run')\n")
    with pytest.raises(ValueError, match="no code is run"):
        load(reference, outside=Path("results"))
    write("mine/own.py", "answer = 42\n")
    assert load("mine/own.py:answer", outside=Path("results")) == 42


def test_a_link_out_of_the_folder_of_results_or_into_it_is_followed_before_it_is_judged(apart):
    write("results/own.py", "raise SystemExit('this code was run')\n")
    Path("link.py").symlink_to(apart / "results" / "own.py")
    with pytest.raises(ValueError, match="no code is run"):
        load("link.py:answer", outside=Path("results"))


def test_no_module_is_looked_for_in_a_folder_of_results(apart, monkeypatch):
    folder = write("results/hidden.py", "raise SystemExit('this code was run')\n").parent
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="no code is run"):
        load("hidden:answer", outside=Path())
    monkeypatch.chdir(apart)
    with pytest.raises(ValueError, match="no code is run"):
        load("results.hidden:answer", outside=Path("results"))
    assert load("math:pi", outside=Path("results")) is math.pi
