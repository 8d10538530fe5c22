"""When a run counts as memorised, generalised, lost again: the thresholds of its milestones.

A `grokscope.analysis.trajectory.Trajectory` finds its milestones by them, computes each once and
keeps it.
"""

from __future__ import annotations

import math

MEMORISED = 0.99  # training accuracy
GENERALISED = 0.95  # validation accuracy
FELL_AGAIN = 0.9  # validation accuracy below which a generalised network counts as lost
UNSTABLE = 0.05  # share of such points above which a run is called unstable
LEAST_RISE = 0.1  # of validation accuracy; less is no generalisation
CREEP = 0.25  # of the way from plateau to end: how far the plateau may creep and still be one
LEAST_FALL = math.log10(1.5)  # decades; a measure that falls less does not fall
LEAST_PLATEAU = 1.25  # ratio of steps; a shorter plateau cannot tell its two ends apart
LEAST_PLATEAU_POINTS = 5
