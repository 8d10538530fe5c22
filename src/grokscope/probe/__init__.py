"""The probe: measures any classifier, and leaves it as it found it."""

from grokscope.probe.look import Look
from grokscope.probe.measurement import Measurement
from grokscope.probe.probe import Probe, measure_tensors

__all__ = ["Look", "Measurement", "Probe", "measure_tensors"]
