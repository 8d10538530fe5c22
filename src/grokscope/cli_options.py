"""The options of the command line, listed once; commands take them as objects.

A command whose parameter is annotated with one of the dataclasses here has all of its fields as
options, see `expand_options`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from grokscope.runs.options import RunOptions
    from grokscope.spec import Experiment

# Options, by the part of the help in which they stand.
what = functools.partial(typer.Option, rich_help_panel="What to run")
results = functools.partial(typer.Option, rich_help_panel="Results")
how = functools.partial(typer.Option, rich_help_panel="How to run")
cluster = functools.partial(typer.Option, rich_help_panel="On a cluster")

Name = Annotated[
    str,
    typer.Argument(
        help="An experiment of 'grokscope list', path/to/file.py:name, or a YAML file.",
        show_default=False,
    ),
]
Folder = Annotated[Path, typer.Argument(help="Folder of a run (its --out).", show_default=False)]
Beside = Annotated[
    Path | None,
    results(help="A second run to plot alongside; defaults to that of the last report."),
]
Grid = Annotated[
    list[str],
    what(
        metavar="PATH=A,B,C",
        help="Values of a setting, with paths as in --set. Repeat it for more settings: every "
        "combination is run.",
    ),
]


@dataclass(frozen=True)
class Selection:
    """Which experiment, and what to change in it."""

    preset: Annotated[
        str,
        what(
            help="Variant of the experiment; defaults to the first one of 'grokscope list NAME'.",
            show_default=False,
        ),
    ] = "default"
    set_: Annotated[
        list[str] | None,
        what(
            "--set",
            metavar="PATH=VALUE",
            help="Change a setting, e.g. task.modulus=53; can be repeated. 'grokscope show NAME' "
            "lists the settings.",
        ),
    ] = None
    seeds: Annotated[
        str | None,
        what(help="Seeds, separated by commas: 1,42,15213"),
    ] = None

    def experiment(self, name: str) -> Experiment:
        """The experiment that a name and these options describe, validated."""
        from grokscope.experiments import find_experiment
        from grokscope.spec import override, with_seeds

        experiment = override(find_experiment(name, self.preset), self.set_ or [])
        return experiment if self.seeds is None else with_seeds(experiment, self.seeds)


@dataclass(frozen=True)
class Execution:
    """Where results go, and how the work is done."""

    out: Annotated[
        Path | None,
        results(help="Folder of the results; defaults to runs/NAME or runs/NAME-PRESET."),
    ] = None
    beside: Beside = None
    dry_run: Annotated[
        bool,
        results("--dry-run", help="Show what would run, without running it."),
    ] = False
    workers: Annotated[
        int | None,
        how(min=1, help="Number of worker processes; defaults to the number of cores."),
    ] = None
    threads: Annotated[int, how(min=1, help="CPU threads per worker.")] = 1
    checkpoint_seconds: Annotated[
        float,
        how(
            min=0,
            help="Seconds between checkpoints: a killed process loses that much work at most.",
        ),
    ] = 30.0
    device: Annotated[
        str,
        how(help="cpu, cuda, cuda:1, or auto, which uses CUDA where it is available."),
    ] = "auto"
    replicas: Annotated[
        int | None,
        how(
            "--replicas",
            min=1,
            help="The most runs that one worker trains together; defaults to 1 on a CPU, to as "
            "many as fit into memory on a GPU.",
        ),
    ] = None
    together: Annotated[
        Literal["auto", "streams", "vmap"],
        how(
            help="How one worker trains several runs: side by side (streams, any runs), or as one "
            "program (vmap, runs that differ in seeds and strengths); auto uses streams on a GPU."
        ),
    ] = "auto"
    on: Annotated[
        Literal["local", "ray"],
        cluster(
            help="Run on this machine, or on a Ray cluster whose nodes share the folder of the "
            "results."
        ),
    ] = "local"
    address: Annotated[
        str | None,
        cluster(
            help="Address of the Ray cluster, host:port or auto; without it, Ray is started on "
            "this machine."
        ),
    ] = None

    def options(self) -> RunOptions:
        """How to run."""
        from grokscope.runs.options import RunOptions

        return RunOptions(**{field.name: getattr(self, field.name) for field in fields(RunOptions)})

    def folder(self, experiment: Experiment) -> Path:
        """Where the results of the experiment go.

        Raises:
            ValueError: If that is a file.
        """
        variant = "" if experiment.preset == "default" else f"-{experiment.preset}"
        folder = self.out or Path("runs") / f"{experiment.name}{variant}"
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a directory; choose another with --out")
        return folder


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose dataclass parameters are replaced by the fields of those dataclasses."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    groups = {name: hints[name] for name in signature.parameters if is_dataclass(hints.get(name))}
    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        annotations = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=annotations[field.name],
            )
            for field in fields(group)
        ]

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {item.name: item.annotation for item in parameters}
    return expanded
