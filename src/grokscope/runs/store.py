"""Segments on disk: written beside, then renamed, so that what is there is always whole.

``segments/<id>/`` is a finished segment; ``segments/<id>.partial/step-<n>/`` its last checkpoint
while it runs. Both hold the state and the metrics *of the same step*, so that going on from a
checkpoint neither repeats nor omits a measurement. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grokscope.engine.observe import Row
from grokscope.engine.state import State
from grokscope.runs.lease import Lease, LeaseLostError, busy_error
from grokscope.spec import Experiment, Segment, read_experiment, read_run, to_yaml

COLUMNS = ["step", "epoch", "replica", "split", "measure", "value"]
FACTS = ("step", "optimizer", "threads", "seconds", "diverged")


@dataclass(frozen=True)
class Outcome:
    """How a finished segment ended."""

    step: int
    diverged: bool
    seconds: float


@dataclass(frozen=True)
class Finished:
    """What a finished segment of any experiment took."""

    kind: str  # of its task
    steps: int
    seconds: float
    bytes: int


class Store:
    """The results of experiments in one folder.

    Args:
        folder: Where ``experiment.yaml`` and ``segments/`` live; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.segments = self.folder / "segments"
        self._leases: dict[str, Lease] = {}  # those that this object holds
        self._asked: dict[str, Lease] = {}  # they remember since when nothing was renewed

    # The experiment that was asked for last.

    def save_experiment(self, experiment: Experiment) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(self.folder / "experiment.yaml", to_yaml(experiment))

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

    # Finished segments.

    def outcome(self, segment: Segment) -> Outcome | None:
        """How the segment ended, or None while it has not.

        Raises:
            ValueError: If its file is damaged; names it and says how to go on, as all here do.
        """
        path = self._final(segment) / "state.json"
        if not path.is_file():
            return None
        facts = _read_json(path, FACTS)
        return Outcome(facts["step"], facts["diverged"], facts["seconds"])

    def finished(self) -> Iterator[Finished]:
        """What every finished segment in the folder took, whichever experiment it is of."""
        for path in sorted(self.segments.glob("*/spec.yaml")):
            segment = Segment(run=read_run(path))
            outcome = self.outcome(segment)
            if outcome is not None and outcome.step > segment.start:
                size = sum(each.stat().st_size for each in path.parent.iterdir())
                steps = outcome.step - segment.start
                yield Finished(segment.run.task.kind, steps, outcome.seconds, size)

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
        """Store the end of a segment and drop its checkpoints."""
        with _Replacing(self._final(segment), lambda: self.confirm(segment)) as folder:
            _write_state(folder, state, rows, seconds, diverged)
            _write_text(folder / "spec.yaml", to_yaml(segment.run))
            _write_text(folder / "environment.json", json.dumps(environment, indent=2))
        shutil.rmtree(self._partial(segment), ignore_errors=True)

    # Segments under way.

    def lease(self, segment: Segment) -> Lease:
        """The lease of the segment, not yet taken."""
        self.segments.mkdir(parents=True, exist_ok=True)
        return Lease(self.segments / f"{segment.id}.lease")

    @contextmanager
    def lock(self, segment: Segment) -> Iterator[None]:
        """Held by whoever runs the segment; see `Lease` for when others may take it.

        Raises:
            SegmentBusyError: If another process holds it.
        """
        lease = self.lease(segment)
        if not lease.take():
            raise busy_error(segment.id, self.folder)
        self._leases[segment.id] = lease
        try:
            yield
        finally:
            del self._leases[segment.id]
            lease.free()

    def is_free(self, segment: Segment) -> bool:
        """Whether no other process runs the segment.

        Ask again and again: of a holder on another machine, only time tells that it is gone.
        """
        lease = self._asked.get(segment.id)
        if lease is None:
            lease = self._asked[segment.id] = self.lease(segment)
        if not lease.take():
            return False
        lease.free()
        return True

    def confirm(self, segment: Segment) -> None:
        """Check that a segment which this object runs is still its own.

        Raises:
            LeaseLostError: If another process has taken it over.
        """
        lease = self._leases.get(segment.id)
        if lease is not None and not lease.held():
            raise LeaseLostError(
                f"segment {segment.id} in {self.folder} was taken over by another process, because "
                f"this one had not renewed its lease for {lease.expiry:g} s; nothing more is "
                "written here"
            )

    def sweep(self, segment: Segment) -> None:
        """Remove what a killed process was still writing; only for who holds the lease."""
        folders = (self.segments, self._partial(segment))
        for folder, name in zip(folders, (segment.id, "step-*"), strict=True):
            for left in folder.glob(f".{name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def checkpoint(
        self, segment: Segment, state: State, rows: Sequence[Row], seconds: float
    ) -> None:
        """Store a state under way; earlier checkpoints of the segment go when it is there."""
        partial = self._partial(segment)
        partial.mkdir(parents=True, exist_ok=True)
        newest = partial / f"step-{state.step:010d}"
        with _Replacing(newest, lambda: self.confirm(segment)) as folder:
            _write_state(folder, state, rows, seconds, diverged=False)
        for other in partial.iterdir():
            if other != newest:
                shutil.rmtree(other, ignore_errors=True)

    def last_checkpoint(self, segment: Segment) -> tuple[State, list[Row], float] | None:
        """State, metrics and seconds of the last checkpoint, or None without one."""
        steps = sorted(self._partial(segment).glob("step-*"))
        return _read_state(steps[-1]) if steps else None

    def checkpoint_step(self, segment: Segment) -> int | None:
        """The step of the last checkpoint, without reading it."""
        steps = sorted(self._partial(segment).glob("step-*"))
        return int(steps[-1].name.removeprefix("step-")) if steps else None

    # What is read from them.

    def metrics(self, experiment: Experiment) -> pd.DataFrame:
        """All there is as one tidy frame with the columns arm and seed in front.

        An arm's rows run through all its segments, unfinished ones up to their last checkpoint;
        shared ones appear in each arm.
        """
        frames = []
        for arm, seed, chain in experiment.runs():
            for segment in chain:
                path = self._newest(segment) / "metrics.parquet"
                if path.is_file():
                    frame = _read_metrics(path).drop(columns="replica")
                    frame.insert(0, "arm", arm)
                    frame.insert(1, "seed", seed)
                    frames.append(frame)
        if not frames:
            columns = ["arm", "seed", *(each for each in COLUMNS if each != "replica")]
            return pd.DataFrame(columns=columns)
        return pd.concat(frames, ignore_index=True)

    def environments(self, experiment: Experiment) -> list[dict[str, Any]]:
        """The environment of every finished segment."""
        chains = [chain for _, _, chain in experiment.runs()]
        paths = {self._final(each) / "environment.json": None for chain in chains for each in chain}
        return [_read_json(path) for path in paths if path.is_file()]

    def _newest(self, segment: Segment) -> Path:
        """The folder of the segment's end, or of its last checkpoint."""
        steps = sorted(self._partial(segment).glob("step-*"))
        final = self._final(segment)
        return final if final.is_dir() or not steps else steps[-1]

    def _final(self, segment: Segment) -> Path:
        return self.segments / segment.id

    def _partial(self, segment: Segment) -> Path:
        return self.segments / f"{segment.id}.partial"


class _Replacing:
    """A folder that appears under its name only when everything in it has been written."""

    def __init__(self, target: Path, confirm: Callable[[], None]) -> None:
        self.target, self.confirm = target, confirm
        self.temporary = _beside(target)

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            for path in self.temporary.iterdir():
                _flush(path)
            self._confirm()
            # A target can be there only from a process that was killed after its rename and
            # before it could say so; what it holds is of the same step.
            shutil.rmtree(self.target, ignore_errors=True)
            os.rename(self.temporary, self.target)
        else:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.confirm()  # a successor sweeps what we were writing: then that is the cause

    def _confirm(self) -> None:
        try:
            self.confirm()
        except BaseException:
            shutil.rmtree(self.temporary, ignore_errors=True)
            raise


def _beside(path: Path) -> Path:
    """A temporary name; process ids of two machines may be the same."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    temporary = _beside(path)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _write_state(
    folder: Path, state: State, rows: Sequence[Row], seconds: float, diverged: bool
) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in state.tensors.items()},
        folder / "state.safetensors",
    )
    facts = {
        "step": state.step,
        "optimizer": state.optimizer,
        "threads": state.threads,
        "seconds": seconds,
        "diverged": diverged,
    }
    _write_text(folder / "state.json", json.dumps(facts, indent=2))
    frame = pd.DataFrame(rows, columns=list(Row._fields)).astype({"step": "int64"})
    frame.insert(2, "replica", 0)
    for name in ("split", "measure"):
        frame[name] = frame[name].astype("category")
    frame.to_parquet(folder / "metrics.parquet", index=False, compression="zstd")


def _read_state(folder: Path) -> tuple[State, list[Row], float]:
    facts = _read_json(folder / "state.json", FACTS)
    with _reading(folder / "state.safetensors") as path:
        tensors = load_file(path)
    state = State(facts["step"], tensors, facts["optimizer"], facts["threads"])
    frame = _read_metrics(folder / "metrics.parquet")[list(Row._fields)]
    return state, [Row(*values) for values in frame.itertuples(index=False)], facts["seconds"]


def _read_json(path: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """An object with at least these names."""
    with _reading(path):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise TypeError(f"it holds no object but {type(facts).__name__}")
        for name in names:
            if name not in facts:
                raise KeyError(f"it lacks {name}")
        return facts


def _read_metrics(path: Path) -> pd.DataFrame:
    with _reading(path):
        frame = pd.read_parquet(path)
        for name in COLUMNS:
            if name not in frame:
                raise KeyError(f"it lacks the column {name}")
        return frame


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Name the file that is damaged, and the cure."""
    try:
        yield path
    except PermissionError:
        raise  # names its file, and there is nothing wrong with that
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        why = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
        wrong = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({why})"
        raise ValueError(
            f"{path} {wrong}; delete the folder {path.parent} to run this segment again"
        ) from error
