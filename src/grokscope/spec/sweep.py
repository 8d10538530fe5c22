"""A sweep: an experiment whose arms are those of another one, crossed with a grid of settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import yaml
from pydantic import ValidationError

from grokscope.spec.experiment import Contrast, Experiment
from grokscope.spec.run import Run
from grokscope.spec.text import assign, check_kind, explain, keys_of, parse

MOST_RUNS = 10_000  # more are a slip of the pen
SWEEP = "-sweep"  # ends the name of what was made here


@dataclass(frozen=True)
class Axis:
    """One ``path=a,b,c`` of a grid."""

    text: str
    keys: tuple[str, ...]
    values: tuple[Any, ...]
    label: str = ""

    def starts(self, arm: str) -> list[str] | None:
        """The whole path within an experiment for this arm; None if it names another one."""
        if self.keys[0] != "arms":
            return ["arms", arm, *self.keys]
        return list(self.keys) if self.keys[1:2] == (arm,) else None

    def named(self, value: Any) -> str:
        return f"{self.label}={_shown(value)}"


FEW_ARMS = 3  # of more, each of which has a column in some figures, too little would be seen
BY_ARM = ("accuracies", "flatness_by_arm", "outcomes", "collapse_by_arm", "losses_by_arm")

Point = tuple[tuple[Axis, Any], ...]


def sweep(experiment: Experiment, grid: Sequence[str]) -> Experiment:
    """The experiment with every arm crossed with the grid.

    An arm is crossed with the settings that it has; one that has none of them stays as it is, once.
    A contrast is drawn at every point of its arm, against the other arm at the same values, and
    goes where that one varies in something more. Claims that rest on no contrast are left out, and
    so are the paper's values: they are those of the settings before.

    Args:
        experiment: What is varied.
        grid: Axes as ``path=a,b,c``; paths as in `override`, values YAML.

    Raises:
        ValueError: If an axis is no such text, is given twice, has a path that is nowhere or a
            value that does not fit (names the point), or if there are too many runs.
    """
    axes = _labelled([_axis(text, experiment) for text in grid])
    if not axes:
        raise ValueError("a sweep needs a grid, e.g. --grid phases.0.optimizer.lr=1e-3,1e-2")
    data = experiment.model_dump(mode="json")
    own = {arm: [axis for axis in axes if _has(data, axis, arm)] for arm in experiment.arms}
    for axis in axes:
        if not any(axis in each for each in own.values()):
            raise ValueError(f"--grid {axis.text}: {_why_nowhere(data, axis)}")
    for arm, its in own.items():
        _check_apart(data, arm, its)
    _check_number(own, len(experiment.seeds))
    arms = {
        _name(arm, point): _run(data, arm, point)
        for arm, its in own.items()
        for point in _points(its)
    }
    contrasts = tuple(_contrasts(experiment, own))
    changes = {
        "name": f"{experiment.name}{SWEEP}",
        "title": f"{experiment.title}: sweep of {', '.join(axis.label for axis in axes)}",
        "arms": arms,
        "contrasts": contrasts,
        "claims": [each for each in experiment.claims if each in {of.claim for of in contrasts}],
        "paper": (),
        "figures": experiment.figures if len(arms) <= FEW_ARMS else BY_ARM,
    }
    try:
        return Experiment.model_validate(dict(experiment) | changes)
    except ValidationError as error:
        raise ValueError(f"--grid {' --grid '.join(grid)}: {explain(error)}") from error


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
    twice = next((each for each in shown if shown.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"--grid {text}: the value {twice} is there twice")
    return Axis(text, tuple(keys_of(path.strip(), experiment.arms)), tuple(values))


def _labelled(axes: Sequence[Axis]) -> list[Axis]:
    """The axes with the shortest ends of their paths that tell them apart."""
    paths = [axis.keys for axis in axes]
    for axis in axes:
        if paths.count(axis.keys) > 1:
            raise ValueError(f"--grid {axis.text}: {'.'.join(axis.keys)} is given twice")
    return [Axis(each.text, each.keys, each.values, _label(each.keys, paths)) for each in axes]


def _label(keys: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    for length in range(1, len(keys)):
        end = keys[-length:]
        unique = sum(path[-length:] == end for path in paths) == 1
        if unique and not end[0].lstrip("-").isdigit():
            return ".".join(end)
    return ".".join(keys)


def _has(data: Any, axis: Axis, arm: str) -> bool:
    keys = axis.starts(arm)
    if keys is None:
        return False
    try:
        assign(deepcopy(data), keys, axis.values[0])
    except ValueError:
        return False
    return True


def _why_nowhere(data: Any, axis: Axis) -> str:
    keys = list(axis.keys) if axis.keys[0] == "arms" else axis.starts(next(iter(data["arms"])))
    try:
        assign(deepcopy(data), keys or [], axis.values[0])
    except ValueError as error:
        return str(error)
    return "names no setting of an arm"


def _check_apart(data: Any, arm: str, axes: Sequence[Axis]) -> None:
    """Check that no axis sets what another sets, or a part of it."""
    places = [(axis, _place(data, axis.starts(arm) or [])) for axis in axes]
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


def _check_number(own: Mapping[str, Sequence[Axis]], seeds: int) -> None:
    points = [math.prod(len(axis.values) for axis in axes) for axes in own.values()]
    runs = sum(points) * seeds
    if runs > MOST_RUNS:
        raise ValueError(
            f"the grid makes {runs:,} runs ({sum(points):,} arms, {seeds} seeds); at most "
            f"{MOST_RUNS:,} are taken for meant, so give --grid fewer values"
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
            keys = axis.starts(arm) or []
            check_kind(changed, keys, value)
            assign(changed, keys, deepcopy(value))
        return Run.model_validate(changed["arms"][arm])
    except ValueError as error:  # pydantic's are some
        raise ValueError(f"--grid, at {_name(arm, point)}: {explain(error)}") from error


def _contrasts(experiment: Experiment, own: Mapping[str, Sequence[Axis]]) -> Iterator[Contrast]:
    for each in experiment.contrasts:
        shared = own[each.against]
        if all(axis in own[each.arm] for axis in shared):
            for point in _points(own[each.arm]):
                same = tuple((axis, value) for axis, value in point if axis in shared)
                names = {"arm": _name(each.arm, point), "against": _name(each.against, same)}
                yield each.model_copy(update=names)


def _shown(value: Any) -> str:
    """A value in the name of an arm: short, and different for different values."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
