"""The house keeps its shape: small files, light rooms below, no loose ends."""

from __future__ import annotations

import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "grokscope").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_one_subject_and_fits_four_hundred_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8").strip()
    assert not text or text.startswith(('"""', 'r"""'))
    assert path.stem not in {"utils", "helpers", "common", "misc", "components", "tools"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("grokscope", ("torch", "pandas", "matplotlib")),
        ("grokscope.cli", ("torch", "pandas", "matplotlib", "scipy")),
        ("grokscope.experiments", ("torch", "pandas")),
        ("grokscope.measures", ("pandas", "matplotlib", "scipy", "pydantic")),
        ("grokscope.probe", ("pandas", "matplotlib", "scipy", "pydantic", "transformers")),
        ("grokscope.runs.worker", ("matplotlib", "scipy", "transformers")),
    ],
)
def test_a_room_does_not_import_what_is_heavier_than_itself(module, heavy):
    program = f"import sys, {module}; print(' '.join(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(heavy) & set(done.stdout.split())


def test_the_package_says_its_version_as_installed():
    from importlib.metadata import version

    import grokscope

    assert version("grokscope") == grokscope.__version__


def test_every_public_measure_says_arguments_result_and_cost():
    from grokscope import measures

    named = {name: getattr(measures, name) for name in measures.__all__}
    for name, function in named.items():
        if not isinstance(function, type):
            takes = inspect.signature(function).parameters
            for word in ("Args:",) * bool(takes) + ("Returns:", "Cost"):
                assert word in (function.__doc__ or ""), f"{name} does not say {word}"


def test_no_module_imports_itself_by_way_of_others():
    """Nor through imports inside functions or under TYPE_CHECKING."""
    graph = grimp.build_graph("grokscope", exclude_type_checking_imports=False)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    order = list(TopologicalSorter(imports).static_order())  # CycleError names a circle
    assert len(order) == len(graph.modules) > 100
