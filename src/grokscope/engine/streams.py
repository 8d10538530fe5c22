"""Runs of any kind side by side in one process, each by itself; also a single one.

On a GPU each run has a stream of its own, on which one host thread launches its steps; while one
run is looked at, the others compute. The law: each run is to the bit what it is alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grokscope.engine.loop import STEPS_PER_TICK_ON_GPU, Tick, Training, start
from grokscope.engine.state import State, generators, set_generators
from grokscope.spec import Segment
from grokscope.tasks.task import Task

STEPS_AHEAD = 256  # that a run is given after its look, while the others are looked at


class Streams:
    """The training of segments that need have nothing in common.

    Args:
        tasks: Model (trained in place) and data of each; data may be shared.
        segments: Which phase each runs.
        states: Where each resumes; None starts from the task's initial model.
        graphs: Whether steps are captured as CUDA graphs where that is possible.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        segments: Sequence[Segment],
        states: Sequence[State | None],
        *,
        graphs: bool = True,
    ) -> None:
        # Generators are global: a run alone would find them as it left them.
        self.trainings, self._generators = start(tasks, segments, states, graphs=graphs)
        self._present = len(self.trainings) - 1  # whose generators the global ones are
        self.alive = [
            place for place, training in enumerate(self.trainings) if training.step < training.until
        ]

    def state(self, place: int) -> State:
        """A copy of one run's state, as `Training.state`."""
        return self._turn(place).state()

    def run(self) -> Iterator[dict[int, Tick]]:
        """Train all to the ends of their phases; yields ticks by place.

        A run that is no longer finite ends with a tick that says so; the others continue.
        """
        fresh = [place for place in self.alive if self.trainings[place].fresh]
        if fresh:
            yield self._without_ended({place: self._turn(place).arrive() for place in fresh})
        while self.alive:
            for place in self.alive:
                training = self._turn(place)
                training.advance(training.next_stop() - training.step)
            yield self._without_ended({place: self._arrive(place) for place in self.alive})

    def _without_ended(self, ticks: dict[int, Tick]) -> dict[int, Tick]:
        """These ticks; runs that have ended with theirs are not continued."""
        for place, tick in ticks.items():
            if tick.diverged or tick.step == self.trainings[place].until:
                self.alive.remove(place)
        return ticks

    def advance(self, steps: int) -> None:
        """Make so many steps of each, or those that are left, without a look."""
        for done in range(0, steps, STEPS_PER_TICK_ON_GPU):
            for place in self.alive:
                self._turn(place).advance(min(STEPS_PER_TICK_ON_GPU, steps - done))

    def facts(self, place: int) -> dict[str, object]:
        """How the steps of one run were launched, for its ``environment.json``."""
        return {"together": "streams"} | self.trainings[place].launcher.facts()

    def _arrive(self, place: int) -> Tick:
        """What there is to say of a run; on a GPU it then has work while others are looked at."""
        training = self._turn(place)
        tick = training.arrive()
        if training.on_gpu and len(self.alive) > 1 and not tick.diverged:
            # Not up to a point: a state there counts as looked at.
            ahead = training.next_point() - training.step - 1
            training.advance(max(0, min(ahead, STEPS_AHEAD)))
        return tick

    def _turn(self, place: int) -> Training:
        """One of the runs, with the global generators as it left them."""
        if place != self._present:
            self._generators[self._present] = generators(self.trainings[self._present].task.model)
            set_generators(self._generators[place], self.trainings[place].task.model)
            self._present = place
        return self.trainings[place]
