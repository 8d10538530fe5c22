"""Settings as text: YAML files, ``--set path=value``, and what is wrong with either, in a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from grokscope.interventions import Constraint
from grokscope.reference import did_you_mean
from grokscope.settings import Settings
from grokscope.spec.experiment import Experiment
from grokscope.spec.run import Run
from grokscope.spec.tasks import Task


def _kinds(union: Any) -> tuple[str, ...]:
    """What distinguishes the members of a union."""
    members = get_args(get_args(union)[0])
    return tuple(member.model_fields["kind"].default for member in members)


Kind = TypeVar("Kind", Experiment, Run)
TASK_KINDS, CONSTRAINT_KINDS = _kinds(Task), _kinds(Constraint)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which ``1e-3`` is a number, as everywhere else."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text ``1e-3``, so that it is read as text again."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )


def to_yaml(settings: Settings) -> str:
    """Settings as YAML, in the order of their definition."""
    data = settings.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_experiment(path: Path) -> Experiment:
    """Read an experiment that `to_yaml` wrote.

    Raises:
        FileNotFoundError: If there is no such file; says how to make one.
        ValueError: If the file is not such an experiment; names the file and the fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; grokscope show NAME > {path} writes one")
    return _read(path, Experiment)


def read_run(path: Path) -> Run:
    """Read the settings of a segment that `to_yaml` wrote.

    Raises:
        ValueError: If the file holds something else.
    """
    return _read(path, Run)


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate(parse(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        name = kind.__name__.lower()
        raise ValueError(f"{path} is not a grokscope {name}: {explain(error)}") from error


def override(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """The experiment with ``path=value`` assignments applied, validated as a whole.

    A path is relative to every arm (``task.modulus``, ``phases.0.optimizer.lr``), or names one
    (``arms.NAME.task.modulus``). Values are YAML: ``3``, ``1e-3``, ``null``, ``[0.9, 0.98]``.

    Args:
        experiment: What is changed.
        assignments: Texts ``path=value``, applied in order.

    Raises:
        ValueError: For a path that does not exist or a value that does not fit; the message names
            the assignment and the alternatives.
    """
    data = experiment.model_dump(mode="json")
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"--set {assignment}: write it as path=value, e.g. task.modulus=53")
        keys = keys_of(path.strip(), experiment.arms)
        starts = [[]] if keys[0] == "arms" else [["arms", arm] for arm in data["arms"]]
        try:
            for start in starts:
                check_kind(data, start + keys, parse(text))
                assign(data, start + keys, parse(text))
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"--set {assignment}: {explain(error)}") from error
    return validated(data, ", ".join(f"--set {assignment}" for assignment in assignments))


def with_seeds(experiment: Experiment, text: str) -> Experiment:
    """The experiment with other seeds, written as ``1,42,15213``.

    Raises:
        ValueError: If the text is something else, or seeds are negative or repeated.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds {text}: write whole numbers, e.g. 1,42,15213") from error
    return validated(experiment.model_dump() | {"seeds": seeds}, f"--seeds {text}")


def validated(data: Mapping[str, Any], options: str) -> Experiment:
    """The experiment of these settings.

    Raises:
        ValueError: If they do not fit together; names the options that made them.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{options}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What is wrong, on one line: one ``field: problem`` for each."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    problems: dict[str, None] = {}
    for item in error.errors():
        pairs = zip((None, *item["loc"]), item["loc"], strict=False)
        names = [str(part) for above, part in pairs if not _is_kind(above, part)]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "there is no such setting"
        shown = f" (got {item['input']!r})" if isinstance(item["input"], str | int | float) else ""
        problems[f"{'.'.join(names) or 'settings'}: {message}{shown}"] = None
    return "; ".join(problems)


def _is_kind(above: Any, part: Any) -> bool:
    """Whether a part of a location is a kind, which stands where a name would."""
    if above == "task":
        return part in TASK_KINDS
    return isinstance(above, int) and part in CONSTRAINT_KINDS


def parse(text: str) -> Any:
    """A value as ``--set`` reads it: YAML, in which ``1e-3`` is a number."""
    return _Loader(text).get_single_data()


def keys_of(path: str, arms: Iterable[str]) -> list[str]:
    """The names in a path; the name of an arm may itself contain dots, as in ``strength 0.1``."""
    for arm in sorted(arms, key=len, reverse=True):
        if f"{path}.".startswith(f"arms.{arm}."):
            return ["arms", arm, *path.split(".")[2 + arm.count(".") :]]
    return path.split(".")


def check_kind(data: Any, keys: Sequence[str], value: Any) -> None:
    """Refuse to change a task's kind while its other settings are those of another kind."""
    if len(keys) != 4 or keys[2:] != ["task", "kind"] or value not in TASK_KINDS:
        return
    task = data["arms"].get(keys[1], {}).get("task", {})
    if task.get("kind", value) != value:
        raise ValueError(
            f"task.kind cannot be changed alone, because the other settings are those of "
            f"{task['kind']!r}; set the whole task, as in --set 'task={{kind: {value}, ...}}'"
        )


def assign(data: Any, keys: Sequence[str], value: Any) -> None:
    """Set one leaf of nested dicts and lists; raise for a key that does not exist."""
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        free = last and keys[depth - 1] == "arguments"  # a custom task's own arguments
        index = isinstance(data, list) and re.fullmatch("-?[0-9]+", key)
        if index and -len(data) <= int(key) < len(data):
            place: Any = int(key)
        elif isinstance(data, dict) and (key in data or free):
            place = key
        else:
            names = list(data) if isinstance(data, dict) else []
            names = [str(i) for i in range(len(data))] if isinstance(data, list) else names
            where = ".".join(keys[:depth]) or "the experiment"
            nothing = "It is empty" if isinstance(data, dict | list) else "It is a value"
            there = f"It has: {', '.join(names)}" if names else nothing
            raise ValueError(f"{where} has no {key!r}. {did_you_mean(key, names)}{there}")
        if last:
            data[place] = value
        data = data[place]
