"""Segments on disk: written under another name, then renamed, so that they are always whole.

``segments/<id>/`` is a finished segment; ``segments/<id>.partial/step-<n>/`` its last checkpoint
while it runs. Both hold the state and the metrics *of the same step*, so that resuming from a
checkpoint neither repeats nor omits a measurement. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from safetensors.torch import load_file, save_file

from grokscope.engine.observe import Row
from grokscope.engine.state import State
from grokscope.runs.files import read_object, reading, replacing, write_text
from grokscope.runs.lease import Lease, LeaseLostError, SegmentBusyError
from grokscope.runs.metrics import as_frame, read_rows, read_table, write_rows
from grokscope.spec import Experiment, Segment, read_experiment, read_run, to_yaml

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FACTS = ("step", "optimizer", "threads", "seconds", "diverged")


@dataclass(frozen=True)
class SegmentEnd:
    """How a finished segment ended.

    Attributes:
        step: The last step.
        diverged: Whether it ended because its features or logits were no longer finite.
        seconds: Seconds of work.
    """

    step: int
    diverged: bool
    seconds: float


@dataclass(frozen=True)
class SegmentCost:
    """What a finished segment took.

    Attributes:
        task_kind: The kind of its task.
        steps: Its steps.
        seconds: Seconds of work.
        disk: Bytes of its files.
    """

    task_kind: str
    steps: int
    seconds: float
    disk: int


class Command(TypedDict):
    """How the results of a folder were asked for, as ``command.json`` holds it."""

    command: str | None  # the full command line, as typed
    beside: str | None  # the folder of a second run that the report shows alongside


class Store:
    """The results of experiments in one folder.

    Args:
        folder: Where ``experiment.yaml`` and ``segments/`` live; created when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.segments = self.folder / "segments"
        self._leases: dict[str, Lease] = {}  # those that this object holds
        self._asked: dict[str, Lease] = {}  # they remember since when nothing was renewed

    # The experiment that was asked for last, and how.

    def save_experiment(self, experiment: Experiment) -> None:
        """Write ``experiment.yaml``; the folder is created if need be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "experiment.yaml", to_yaml(experiment))

    def experiment(self) -> Experiment:
        """The experiment of this folder.

        Raises:
            FileNotFoundError: If nothing was run here.
            ValueError: If its file is not readable.
        """
        path = self.folder / "experiment.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} holds no run (there is no {path.name}); "
                "start one with: grokscope run NAME --out " + str(self.folder)
            )
        return read_experiment(path)

    def save_command(self, command: str | None, beside: Path | None = None) -> None:
        """Keep the command line that was used, so that the report can say how to run it again.

        Args:
            command: The full command line, as typed; None keeps the one that is there.
            beside: The folder of a second run that the report shows alongside; None keeps the
                one that is there.
        """
        earlier = self.command() or Command(command=None, beside=None)
        path = earlier["beside"] if beside is None else str(beside.resolve())
        facts = Command(command=command or earlier["command"], beside=path)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "command.json", json.dumps(facts, indent=2))

    def command(self) -> Command | None:
        """The command line that was used; None in a folder that does not record it."""
        try:
            facts = json.loads((self.folder / "command.json").read_text(encoding="utf-8"))
            return Command(command=facts["command"], beside=facts["beside"])
        except (OSError, ValueError, KeyError, TypeError):  # results don't depend on it
            return None

    def beside(self) -> Store | None:
        """The second run that the report shows alongside.

        It is looked for where it was, then by its name next to this folder, as both may have been
        copied; None without one.
        """
        command = self.command()
        if command is None or command["beside"] is None:
            return None
        there = Path(command["beside"])
        places = (there, self.folder.resolve().parent / there.name)
        found = (place for place in places if (place / "experiment.yaml").is_file())
        return next(map(Store, found), None)

    # Finished segments.

    def outcome(self, segment: Segment) -> SegmentEnd | None:
        """How the segment ended, or None while it has not.

        Raises:
            ValueError: If its file is damaged; names it and the cure, as all methods here do.
        """
        path = self._final(segment) / "state.json"
        if not path.is_file():
            return None
        facts = read_object(path, FACTS)
        return SegmentEnd(facts["step"], facts["diverged"], facts["seconds"])

    def cost(self, segment: Segment) -> SegmentCost | None:
        """What a finished segment took; None where it made no step or has not finished."""
        end = self.outcome(segment)
        if end is None or end.step <= segment.start:
            return None
        disk = sum(path.stat().st_size for path in self._final(segment).iterdir())
        return SegmentCost(segment.run.task.kind, end.step - segment.start, end.seconds, disk)

    def other_costs(self, known: Collection[str]) -> Iterator[SegmentCost]:
        """What other finished segments of the folder took, whichever experiment they belong to.

        Args:
            known: Ids of the segments to leave out; the settings of all others are read.
        """
        for path in sorted(self.segments.glob("*/spec.yaml")):
            if path.parent.name not in known:
                cost = self.cost(Segment(run=read_run(path)))
                if cost is not None:
                    yield cost

    def finished(self) -> Iterator[SegmentCost]:
        """What every finished segment of the folder took."""
        return self.other_costs(())

    def state(self, segment: Segment) -> State:
        """The state at the end of a finished segment."""
        return _read_state(self._final(segment))[0]

    def finish(
        self,
        segment: Segment,
        state: State,
        rows: Sequence[Row],
        seconds: float,
        environment: Mapping[str, Any],
        diverged: bool = False,
    ) -> None:
        """Store the end of a segment and drop its checkpoints.

        Args:
            segment: What has finished.
            state: The state at its end.
            rows: Its metrics.
            seconds: Seconds of work.
            environment: What a reader needs to judge it, as JSON.
            diverged: Whether features or logits were no longer finite.
        """
        with replacing(self._final(segment), lambda: self.confirm(segment)) as folder:
            _write_state(folder, state, rows, SegmentEnd(state.step, diverged, seconds))
            write_text(folder / "spec.yaml", to_yaml(segment.run))
            write_text(folder / "environment.json", json.dumps(environment, indent=2))
        shutil.rmtree(self._partial(segment), ignore_errors=True)

    # Segments under way.

    def lease(self, segment: Segment) -> Lease:
        """The lease of the segment, not yet taken."""
        self.segments.mkdir(parents=True, exist_ok=True)
        return Lease(self.segments / f"{segment.id}.lease")

    @contextmanager
    def lock(self, segment: Segment) -> Iterator[None]:
        """Hold the segment while the block runs; see `Lease` for when others may take it.

        Raises:
            SegmentBusyError: If another process holds it.
        """
        lease = self.lease(segment)
        if not lease.take():
            raise SegmentBusyError(
                f"segment {segment.id} in {self.folder} is being run by another process; "
                "wait for it, or choose another folder with --out"
            )
        self._leases[segment.id] = lease
        try:
            yield
        finally:
            del self._leases[segment.id]
            lease.free()

    def is_free(self, segment: Segment) -> bool:
        """Whether no other process runs the segment.

        Ask repeatedly: only time shows that a holder on another machine is gone.
        """
        lease = self._asked.get(segment.id)
        if lease is None:
            lease = self._asked[segment.id] = self.lease(segment)
        if not lease.take():
            return False
        lease.free()
        return True

    def confirm(self, segment: Segment) -> None:
        """Check that this object still holds a segment that it runs.

        Raises:
            LeaseLostError: If another process has taken it over.
        """
        lease = self._leases.get(segment.id)
        if lease is not None and not lease.held():
            raise LeaseLostError(
                f"segment {segment.id} in {self.folder} was taken over by another process, because "
                f"this one had not renewed its lease for {lease.expiry:g} s; this process "
                "writes nothing more"
            )

    def sweep(self, segment: Segment) -> None:
        """Remove what a killed process was still writing; only the holder of the lease may."""
        folders = (self.segments, self._partial(segment))
        for folder, name in zip(folders, (segment.id, "step-*"), strict=True):
            for leftover in folder.glob(f".{name}.*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)

    def checkpoint(
        self, segment: Segment, state: State, rows: Sequence[Row], seconds: float
    ) -> None:
        """Store a state under way, then remove earlier checkpoints of the segment."""
        partial = self._partial(segment)
        partial.mkdir(parents=True, exist_ok=True)
        newest = partial / f"step-{state.step:010d}"
        with replacing(newest, lambda: self.confirm(segment)) as folder:
            _write_state(folder, state, rows, SegmentEnd(state.step, False, seconds))
        for other in partial.iterdir():
            if other != newest:
                shutil.rmtree(other, ignore_errors=True)

    def last_checkpoint(self, segment: Segment) -> tuple[State, list[Row], float] | None:
        """State, metrics and seconds of the last checkpoint, or None without one."""
        newest = self._newest_checkpoint(segment)
        return _read_state(newest) if newest else None

    def checkpoint_step(self, segment: Segment) -> int | None:
        """The step of the last checkpoint, without reading it."""
        newest = self._newest_checkpoint(segment)
        return int(newest.name.removeprefix("step-")) if newest else None

    # What is read from them.

    def metrics(self, experiment: Experiment) -> pd.DataFrame:
        """All metrics as one tidy frame: ``arm, seed, step, epoch, split, measure, value``.

        An arm's rows run through all its segments, unfinished ones up to their last checkpoint;
        shared ones appear in each arm. Arm, split and measure are categories.

        Cost: about a millisecond for each segment of a few thousand rows.
        """
        return as_frame(self.tables(experiment))

    def tables(self, experiment: Experiment) -> Iterator[tuple[str, int, pa.Table]]:
        """Arm, seed and metrics of every run as an Arrow table, without copies of their names.

        Columns are ``step, epoch, split, measure, value``. A segment that arms share is read once.
        """
        import pyarrow as pa

        tables: dict[str, pa.Table | None] = {}
        for arm, seed, chain in experiment.runs():
            for segment in chain:
                if segment.id not in tables:
                    path = self._newest(segment) / "metrics.parquet"
                    tables[segment.id] = read_table(path) if path.is_file() else None
            found = [tables[segment.id] for segment in chain]
            parts = [table for table in found if table is not None]
            if parts:
                yield arm, seed, pa.concat_tables(parts)

    def environments(self, experiment: Experiment) -> list[dict[str, Any]]:
        """The environment of every finished segment."""
        segments = {segment.id: segment for _, _, chain in experiment.runs() for segment in chain}
        paths = [self._final(segment) / "environment.json" for segment in segments.values()]
        return [read_object(path) for path in paths if path.is_file()]

    def _newest(self, segment: Segment) -> Path:
        """The folder of the segment's end, or of its last checkpoint."""
        final = self._final(segment)
        return final if final.is_dir() else self._newest_checkpoint(segment) or final

    def _newest_checkpoint(self, segment: Segment) -> Path | None:
        partial = self._partial(segment)
        return max(partial.glob("step-*"), default=None) if partial.is_dir() else None

    def _final(self, segment: Segment) -> Path:
        return self.segments / segment.id

    def _partial(self, segment: Segment) -> Path:
        return self.segments / f"{segment.id}.partial"


def _write_state(folder: Path, state: State, rows: Sequence[Row], end: SegmentEnd) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in state.tensors.items()},
        folder / "state.safetensors",
    )
    facts = {
        "step": state.step,
        "optimizer": state.optimizer,
        "threads": state.threads,
        "seconds": end.seconds,
        "diverged": end.diverged,
    }
    write_text(folder / "state.json", json.dumps(facts, indent=2))
    write_rows(folder / "metrics.parquet", rows)


def _read_state(folder: Path) -> tuple[State, list[Row], float]:
    facts = read_object(folder / "state.json", FACTS)
    with reading(folder / "state.safetensors") as path:
        tensors = load_file(path)
    state = State(facts["step"], tensors, facts["optimizer"], facts["threads"])
    return state, read_rows(folder / "metrics.parquet"), facts["seconds"]
