"""Stands in for the new engine until it is merged; then this file goes."""

from __future__ import annotations

import sys
import types

from grokscope.engine import loop, replicas

if not hasattr(loop.Training, "advance"):
    _init, _init_replicas = loop.Training.__init__, replicas.Replicas.__init__
    _one = replicas.Replicas.advance

    def init(self, task, segment, state=None, capture=True):
        _init(self, task, segment, state)
        self.eager = "on a CPU"

    def advance(self, steps):
        self.task.model.train()
        if not hasattr(self, "_feed"):
            self._feed = self.batches()
        for _ in range(min(steps, self.until - self.step)):
            batch = next(self._feed)
            self.step += 1
            self.update(self.step, batch)

    def init_replicas(self, tasks, segments, states, capture=True):
        _init_replicas(self, tasks, segments, states)

    def advance_replicas(self, steps=1):
        for _ in range(steps):
            result = _one(self)
        return result

    loop.Training.__init__, loop.Training.advance = init, advance
    replicas.Replicas.__init__ = init_replicas
    replicas.Replicas.advance = advance_replicas

    class Streams:
        def __init__(self, trainings):
            self.trainings = trainings

        def advance(self, steps):
            for training in self.trainings:
                training.advance(steps)

        def state(self, place):
            return self.trainings[place].state()

    module = types.ModuleType("grokscope.engine.streams")
    module.Streams = Streams
    sys.modules["grokscope.engine.streams"] = module
