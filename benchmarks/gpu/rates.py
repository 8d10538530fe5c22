"""What was measured of many runs at once, and the size of an experiment that fits into a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.files import read_json
from grokscope.experiments import find_experiment
from grokscope.spec import Experiment, Segment

# Values of --together; one program can't serve the arms of suppress-flatness, which are unlike.
WAYS = {"grokking": ("streams", "vmap"), "flatness": ("streams",)}
STARTING = 12.0  # seconds until the first step: a process, its worker, graphs, data
SAFETY = 0.9  # of the time is planned for: runs side by side all finish, or none does


@dataclass(frozen=True)
class Rates:
    """Seconds of a step, and of a look, of many runs of one kind.

    Attributes:
        steps: Way -> number of runs -> seconds in which all of them make one step.
        look: Seconds of one look at one run.
    """

    steps: Mapping[str, Mapping[int, float]]
    look: float

    @classmethod
    def read(cls, path: Path, kind: str) -> Rates | None:
        """The rates of a kind in ``timings.json``; None where none was measured.

        Args:
            path: The file.
            kind: ``grokking`` or ``flatness``.
        """
        steps: dict[str, dict[int, float]] = {}
        look, wanted = 0.0, ("passed", kind, "float32")
        for entry in read_json(path).get("items", {}).values():
            if (entry["status"], entry.get("kind"), entry.get("precision")) != wanted:
                continue
            if entry["way"] == "look":
                look = entry["seconds of a step"]
            elif entry["way"] in WAYS[kind]:
                steps.setdefault(entry["way"], {})[entry["runs"]] = entry["seconds of a step"]
        return cls(steps, look) if steps else None

    def best(self, runs: int) -> tuple[str, float]:
        """The faster way for so many runs, and the seconds in which all make one step."""
        found = {way: between(times, runs) for way, times in self.steps.items()}
        way = min(found, key=lambda name: found[name])
        return way, found[way]

    def seconds(self, runs: int, steps: int, looks: int) -> float:
        """Seconds of so many runs, each of so many steps and looks."""
        return steps * self.best(runs)[1] + runs * looks * self.look


def between(times: Mapping[int, float], runs: int) -> float:
    """Seconds for a number of runs that was not measured, between those that were.

    Beyond the largest, time grows as the number of runs; below the smallest, it stays.
    """
    counts = sorted(times)
    if runs >= counts[-1]:
        return times[counts[-1]] * runs / counts[-1]
    if runs <= counts[0]:
        return times[counts[0]]
    above = next(count for count in counts if count > runs)
    below = counts[counts.index(above) - 1]
    share = (math.log(runs) - math.log(below)) / (math.log(above) - math.log(below))
    return times[below] ** (1 - share) * times[above] ** share


@dataclass(frozen=True)
class Size:
    """So much of an experiment.

    Attributes:
        about: What it comes to.
        experiment: Name in the catalogue.
        preset: Its preset.
        seeds: Seeds to run.
        levels: How many phases of its runs are meant to finish; the last ones are begun, too, but
            what they need is not counted.
    """

    about: str
    experiment: str
    preset: str
    seeds: tuple[int, ...]
    levels: int

    def waves(self) -> list[tuple[int, int, int]]:
        """What runs side by side, phase after phase: runs, steps of each, looks of each."""
        experiment = find_experiment(self.experiment, self.preset)
        experiment = experiment.model_copy(update={"seeds": self.seeds})
        return [wave(segments) for segments in levels(experiment)[: self.levels]]

    def steps(self) -> int:
        """Steps of all runs together."""
        return sum(runs * steps for runs, steps, _ in self.waves())

    def seconds(self, rates: Rates) -> float:
        """Seconds that it should take by the measured rates."""
        return STARTING + sum(rates.seconds(*one) for one in self.waves())

    @property
    def most_at_once(self) -> int:
        """The largest number of runs side by side, those of the later phases included."""
        experiment = find_experiment(self.experiment, self.preset)
        experiment = experiment.model_copy(update={"seeds": self.seeds})
        return max(len(segments) for segments in levels(experiment))


def levels(experiment: Experiment) -> list[list[Segment]]:
    """The segments of an experiment, those without a parent first."""
    found: list[dict[str, Segment]] = []
    for _, _, chain in experiment.runs():
        for depth, segment in enumerate(chain):
            if depth == len(found):
                found.append({})
            found[depth][segment.id] = segment
    return [list(segments.values()) for segments in found]


def wave(segments: Sequence[Segment]) -> tuple[int, int, int]:
    """Runs, and the steps and looks of the longest of them."""
    steps = max(segment.phase.until - segment.start for segment in segments)
    looks = max(
        sum(point > segment.start for point in segment.run.observation.points(segment.phase.until))
        for segment in segments
    )
    return len(segments), steps, looks


SEEDS = (1, 42, 15213, 2, 3, 4, 5, 6, 7, 8)  # those of the catalogue first


def grokking_sizes(tiny: bool) -> list[Size]:
    """Three to ten seeds, the smallest first."""
    preset, most = ("tiny", 4) if tiny else ("paper", len(SEEDS))
    return [
        Size(f"{count} seeds", "grokking", preset, SEEDS[:count], levels=1)
        for count in range(3, most + 1)
    ]


def flatness_sizes(tiny: bool) -> list[Size]:
    """From the penalty to epoch 100 to the whole tree, the smallest first.

    Each is an experiment of the catalogue, of which the first phases, or all, are to finish: the
    folder is an ordinary one, and what has not finished is in it up to its last checkpoint.
    """
    preset = "tiny" if tiny else "paper"
    one, two = SEEDS[1:2], SEEDS[:2]
    early, late = "suppress-flatness-early", "suppress-flatness"
    return [
        Size("baseline and penalty to epoch 100, one seed", early, preset, one, levels=1),
        Size("baseline and penalty to epoch 200, one seed", late, preset, one, levels=1),
        Size("baseline and penalty to epoch 200, two seeds", late, preset, two, levels=1),
        Size("all six arms to epoch 400, one seed", late, preset, one, levels=2),
    ]


def choose(sizes: Sequence[Size], rates: Rates | None, seconds: float) -> tuple[Size, float | None]:
    """The largest size that fits into a time, and what it should take; the first if none does."""
    if rates is None:
        return sizes[0], None
    fitting = [size for size in sizes if size.seconds(rates) <= SAFETY * seconds]
    chosen = max(fitting, key=Size.steps) if fitting else sizes[0]
    return chosen, chosen.seconds(rates)
