"""Writes docs/architecture.md: the rooms, their modules, and which imports which.

The imports are those of the code, also those inside functions and under TYPE_CHECKING. Arrows that
follow from others are left out, so that what is drawn can be read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "grokscope"
Graph = dict[str, set[str]]

HEAD = """# Architecture

Made by `make docs` from the code's own imports, those inside functions and under `TYPE_CHECKING`
included. An arrow goes from a module to what it imports; arrows that follow from others are left
out. There is no circle: not between the rooms, and not inside one (`tests/test_architecture.py`
and the contracts in `pyproject.toml` keep it so).
"""


def imports() -> Graph:
    """Every module of the package with the modules that it imports."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=False)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def ordered(graph: Graph) -> list[str]:
    """The nodes, each after those that it points to.

    Raises:
        graphlib.CycleError: If there is a circle; its second argument names the nodes on it.
    """
    fixed = {node: sorted(graph[node]) for node in sorted(graph)}  # the same order each time
    return list(TopologicalSorter(fixed).static_order())


def rooms(graph: Graph) -> Graph:
    """The imports between rooms: packages and modules right under the package."""
    found: Graph = {}
    for module, imported in graph.items():
        room = _room(module)
        found.setdefault(room, set()).update(_room(other) for other in imported)
    return {room: others - {room} for room, others in found.items()}


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that follow from others."""
    below: Graph = {}
    for node in ordered(graph):
        below[node] = set().union(*(below[other] | {other} for other in graph[node]), set())
    return {
        node: {
            other
            for other in others
            if not any(other in below[between] for between in others - {other})
        }
        for node, others in graph.items()
    }


def page() -> str:
    """The page as Markdown."""
    graph = imports()
    between = rooms(graph)
    parts = [HEAD, *_drawing(reduced(between), {room: room for room in between})]
    for room in reversed(ordered(between)):
        modules = sorted(module for module in graph if _room(module) == room)
        if room == PACKAGE:
            continue
        parts += [f"\n## {room}\n", *_list(modules)]
        inside = {module: graph[module] & set(modules) for module in modules}
        if any(inside.values()):
            parts += [
                "",
                *_drawing(reduced(inside), {module: _short(module) for module in modules}),
            ]
    return "\n".join(parts) + "\n"


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def _short(module: str) -> str:
    return ".".join(module.split(".")[2:]) or "\\_\\_init\\_\\_"


def _drawing(graph: Graph, names: Mapping[str, str]) -> Iterator[str]:
    yield "```mermaid"
    yield "flowchart TD"
    for node in sorted(graph):
        yield f'  {_id(node)}["{names[node]}"]'
    for node in sorted(graph):
        yield from (f"  {_id(node)} --> {_id(other)}" for other in sorted(graph[node]))
    yield "```"


def _list(modules: list[str]) -> Iterator[str]:
    for module in modules:
        path = ROOT / "src" / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        summary = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n\n")[0]
        if summary:
            yield f"- `{module}`: {' '.join(summary.split())}"


def _id(node: str) -> str:
    return node.replace(".", "_")


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.md").write_text(page(), encoding="utf-8")
