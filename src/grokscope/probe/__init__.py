"""The probe: measures any classifier, and leaves it as it found it."""

from grokscope.probe.collector import measure_tensors
from grokscope.probe.measurement import Measurement
from grokscope.probe.probe import Probe

__all__ = ["Measurement", "Probe", "measure_tensors"]
