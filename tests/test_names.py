"""Names are the field's words, and calls say what their arguments are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "grokscope"
MODULES = sorted(SOURCE.rglob("*.py"))
# Words that stand for whatever happens to be there: the thing itself has a name.
VAGUE = {"own", "each", "told", "made", "said", "given", "heard", "hired", "bury", "theirs"}
MOST_POSITIONAL = 4
KEPT = {"finish"}  # of `Store`, which programs outside call with six
# Calls whose positional arguments are a plain sequence of one kind.
SEQUENCES = {"max", "min", "zip", "print", "range", "Path", "slice", "filter"}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that the code gives to something: variables, arguments, attributes, functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_things_are_called_by_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    vague = [
        f"line {line}: {name}"
        for name, line in identifiers(tree)
        if VAGUE & set(name.strip("_").lower().split("_"))
    ]
    assert not vague


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_call_names_its_arguments_beyond_the_fourth(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    crowded = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) > MOST_POSITIONAL:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name not in SEQUENCES:
                crowded.append(f"line {node.lineno}: {name} with {len(node.args)}")
    assert not crowded


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_function_takes_four_arguments_by_place_at_most(path):
    if path.is_relative_to(SOURCE / "measures"):
        pytest.skip("what is public there keeps its arguments")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    crowded = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            places = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
            places = [name for name in places if name not in ("self", "cls")]
            if len(places) > MOST_POSITIONAL and node.name not in KEPT:
                crowded.append(f"line {node.lineno}: {node.name} takes {len(places)}")
    assert not crowded
