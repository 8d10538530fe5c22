"""The figures of a report, one file each, found by their names.

A figure is a function of a `Study` and a `Canvas` that returns a `Drawn`, or raises
`MissingMeasureError` when the study lacks what it shows. It has the name of its file; a user's is
``path/to/file.py:name``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from grokscope.reference import did_you_mean, is_reference, load
from grokscope.report.canvas import Canvas, Drawn
from grokscope.report.contents import Study
from grokscope.report.tables import extra_measures

if TYPE_CHECKING:
    from grokscope.analysis.run import Results
    from grokscope.spec import Experiment

FigureFunction = Callable[[Study, Canvas], Drawn]
OUTCOMES, MEASURES = "outcomes", "measures"
BY_ARM = ("accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm")
GROKKING = (
    "grokking", "onsets", "confidence", "collapse", "representativeness", "partial_correlations",
)  # fmt: skip


def list_figures() -> dict[str, FigureFunction]:
    """Every figure of grokscope by its name; the first line of its docstring says what it shows."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: find_figure(name) for name in names}


def find_figure(name: str, *, outside: Path | None = None) -> FigureFunction:
    """The figure of a name.

    Args:
        name: A figure of grokscope, or ``path/to/file.py:name`` relative to the current folder.
        outside: The folder of results that it is drawn for, from which no code is run.

    Raises:
        ValueError: If there is none, or it cannot be imported; says what was meant.
    """
    if is_reference(name):
        found = load(name, outside=outside)
        try:
            inspect.signature(found).bind("study", "canvas")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is not a function of a study and a canvas") from error
        return cast(FigureFunction, found)
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in names:
        raise ValueError(
            f"there is no figure {name!r}. {did_you_mean(name, names)}There are: "
            f"{', '.join(sorted(names))}; a figure of your own is path/to/file.py:name"
        )
    figure: FigureFunction = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    return figure


def figures_of(experiment: Experiment, results: Results) -> tuple[str, ...]:
    """The figures of a report: those that the experiment names, or those that suit its runs.

    Where several arms are compared, sharpness against accuracy comes first. A user's own measures
    are always drawn.
    """
    arms = [arm for arm in results.arms.values() if arm.last_step > 0]
    groks = any(run.generalised.found and run.onset.found for run in results.runs[:8])
    several = len(results.arms) > 1
    names: Sequence[str] = experiment.figures
    if not names:
        names = (OUTCOMES, *BY_ARM) if several else GROKKING if groks else BY_ARM
    if several and OUTCOMES in names:
        names = (OUTCOMES, *(name for name in names if name != OUTCOMES))
    if MEASURES not in names and extra_measures(arms):
        names = (*names, MEASURES)
    return tuple(names)
