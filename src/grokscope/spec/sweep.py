"""A sweep: an experiment whose arms are those of another one, crossed with a grid of settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import yaml

from grokscope.spec.experiment import Contrast, Experiment
from grokscope.spec.run import Run
from grokscope.spec.text import assign, check_kind, explain, keys_of, parse, validated

MOST_RUNS = 10_000  # more are a typing error
SWEEP = "-sweep"  # ends the name of every sweep
FEW_ARMS = 3  # with more, figures that give each arm a column would show too little
BY_ARM = ("accuracies", "flatness_by_arm", "outcomes", "collapse_by_arm", "losses_by_arm")


@dataclass(frozen=True)
class Axis:
    """One ``path=a,b,c`` of a grid."""

    text: str
    keys: tuple[str, ...]
    values: tuple[Any, ...]
    label: str = ""

    def path(self, arm: str) -> list[str]:
        """The whole path within an experiment, for this arm unless it names one."""
        return list(self.keys) if self.keys[0] == "arms" else ["arms", arm, *self.keys]

    def problem(self, data: Any, arm: str) -> str:
        """Why this is not a setting of the arm; empty where it is."""
        path = self.path(arm)
        try:
            assign(deepcopy(data), path, self.values[0])
        except ValueError as error:
            return str(error)
        return "" if path[1:2] == [arm] else "this is not a setting of any arm"

    def named(self, value: Any) -> str:
        return f"{self.label}={_shown(value)}"


Point = tuple[tuple[Axis, Any], ...]


def sweep(experiment: Experiment, grid: Sequence[str]) -> Experiment:
    """The experiment with every arm crossed with the grid.

    An arm is crossed with the settings that it has; an arm that has none of them is kept once,
    unchanged. A contrast is drawn at every point of its arm, against the other arm at the same
    values, and left out where that one varies in something more. Claims that rest on no contrast
    are left out, and so are the paper's values, which belong to the unchanged settings.

    Args:
        experiment: What is varied.
        grid: Axes as ``path=a,b,c``; paths as in `override`, values YAML.

    Raises:
        ValueError: If an axis is malformed or repeated, if its path does not exist or a value does
            not fit (the message names the point), or if there are too many runs.
    """
    axes = _labelled([_axis(text, experiment) for text in grid])
    if not axes:
        raise ValueError("a sweep needs a grid, e.g. --grid phases.0.optimizer.lr=1e-3,1e-2")
    data = experiment.model_dump(mode="json")
    axes_of: dict[str, list[Axis]] = {arm: [] for arm in experiment.arms}
    for axis in axes:
        problems = {arm: axis.problem(data, arm) for arm in experiment.arms}
        if all(problems.values()):
            raise ValueError(f"--grid {axis.text}: {next(iter(problems.values()))}")
        for arm, problem in problems.items():
            if not problem:
                axes_of[arm].append(axis)
    for arm, arm_axes in axes_of.items():
        _check_apart(data, arm, arm_axes)
    _check_number(axes_of, len(experiment.seeds))
    arms = {
        _name(arm, point): _run(data, arm, point)
        for arm, arm_axes in axes_of.items()
        for point in _points(arm_axes)
    }
    contrasts = tuple(_contrasts(experiment, axes_of))
    compared = {contrast.claim for contrast in contrasts}
    changes = {
        "name": f"{experiment.name}{SWEEP}",
        "title": f"{experiment.title}: sweep of {', '.join(axis.label for axis in axes)}",
        "arms": arms,
        "contrasts": contrasts,
        "claims": [claim for claim in experiment.claims if claim in compared],
        "paper": (),
        "figures": experiment.figures if len(arms) <= FEW_ARMS else BY_ARM,
    }
    return validated(dict(experiment) | changes, f"--grid {' --grid '.join(grid)}")


def _axis(text: str, experiment: Experiment) -> Axis:
    path, equals, listed = text.partition("=")
    if not equals or not path.strip() or not listed.strip():
        raise ValueError(f"--grid {text}: write it as path=a,b,c, e.g. task.modulus=53,97")
    try:
        values = parse(f"[{listed}]")
    except yaml.YAMLError as error:
        raise ValueError(f"--grid {text}: {explain(error)}") from error
    if not isinstance(values, list) or not values:
        raise ValueError(f"--grid {text}: write its values with commas between them: a,b,c")
    shown = [_shown(value) for value in values]
    repeated = next((value for value in shown if shown.count(value) > 1), None)
    if repeated is not None:
        raise ValueError(f"--grid {text}: the value {repeated} appears twice")
    return Axis(text, tuple(keys_of(path.strip(), experiment.arms)), tuple(values))


def _labelled(axes: Sequence[Axis]) -> list[Axis]:
    paths = [axis.keys for axis in axes]
    for axis in axes:
        if paths.count(axis.keys) > 1:
            raise ValueError(f"--grid {axis.text}: {'.'.join(axis.keys)} appears twice")
    return [replace(axis, label=_label(axis.keys, paths)) for axis in axes]


def _label(keys: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    """The shortest end of a path that distinguishes it from the others."""
    for length in range(1, len(keys)):
        end = keys[-length:]
        unique = sum(path[-length:] == end for path in paths) == 1
        if unique and not end[0].lstrip("-").isdigit():
            return ".".join(end)
    return ".".join(keys)


def _check_apart(data: Any, arm: str, axes: Sequence[Axis]) -> None:
    """Check that no axis sets what another sets, or a part of it."""
    places = [(axis, _place(data, axis.path(arm))) for axis in axes]
    for (one, first), (other, second) in combinations(places, 2):
        shorter = min(len(first), len(second))
        if first[:shorter] == second[:shorter]:
            raise ValueError(
                f"--grid {other.text}: in arm {arm} it sets what --grid {one.text} sets; name each "
                "setting once"
            )


def _place(data: Any, keys: Sequence[str]) -> list[str]:
    """A path with indices that count from the start."""
    place = []
    for key in keys:
        if isinstance(data, list):
            key = str(int(key) % len(data))
            data = data[int(key)]
        else:
            data = data.get(key) if isinstance(data, dict) else None
        place.append(key)
    return place


def _check_number(axes_of: Mapping[str, Sequence[Axis]], seeds: int) -> None:
    arms = sum(math.prod(len(axis.values) for axis in axes) for axes in axes_of.values())
    runs = arms * seeds
    if runs > MOST_RUNS:
        raise ValueError(
            f"the grid makes {runs:,} runs ({arms:,} arms, {seeds} seeds), more than the "
            f"limit of {MOST_RUNS:,}; give --grid fewer values"
        )


def _points(axes: Sequence[Axis]) -> Iterator[Point]:
    for values in product(*(axis.values for axis in axes)):
        yield tuple(zip(axes, values, strict=True))


def _name(arm: str, point: Point) -> str:
    return ", ".join([arm, *(axis.named(value) for axis, value in point)])


def _run(data: Any, arm: str, point: Point) -> Run:
    changed = {"arms": {arm: deepcopy(data["arms"][arm])}}
    try:
        for axis, value in point:
            check_kind(changed, axis.path(arm), value)
            assign(changed, axis.path(arm), deepcopy(value))
        return Run.model_validate(changed["arms"][arm])
    except ValueError as error:  # pydantic's are some
        raise ValueError(f"--grid, at {_name(arm, point)}: {explain(error)}") from error


def _contrasts(experiment: Experiment, axes_of: Mapping[str, Sequence[Axis]]) -> Iterator[Contrast]:
    for contrast in experiment.contrasts:
        arm, against = contrast.arm, contrast.against
        shared = axes_of[against]
        if all(axis in axes_of[arm] for axis in shared):
            for point in _points(axes_of[arm]):
                same = tuple((axis, value) for axis, value in point if axis in shared)
                names = {"arm": _name(arm, point), "against": _name(against, same)}
                yield contrast.model_copy(update=names)


def _shown(value: Any) -> str:
    """A value in the name of an arm: short, and different for different values."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
