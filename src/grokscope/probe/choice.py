"""Which measures are taken: those that were asked for by name, and measures of your own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.record import Batch, Measure, records

# A measure of your own: of features, logits, labels and the head's weight, or with its record.
Extra = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | Measure


def choose(measures: Iterable[str] | None, extra: Mapping[str, Extra]) -> tuple[Measure, ...]:
    """The records of the measures of a probe, in the order in which they are printed.

    Args:
        measures: Names of measures of the probe and of ``extra``; None: all of them.
        extra: Measures of your own by name.

    Raises:
        ValueError: If there is no measure of a name, or one of your own has a name that is taken.
    """
    known = {name: record for name, record in records().items() if record.is_probed}
    for name, measure in extra.items():
        if name in known:
            raise ValueError(f"the probe has a measure called {name!r}; give yours another name.")
        known[name] = as_measure(name, measure)
    if measures is None:
        return tuple(known.values())
    if isinstance(measures, str):
        raise ValueError(f"measures must be a list of names, got {measures!r}; put it in a list.")
    wanted = set(measures)
    for name in sorted(wanted - known.keys(), key=str):
        if name in records():
            raise ValueError(f"{name!r} is taken in a run alone; a probe cannot measure it.")
        close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
        raise ValueError(f"there is no measure called {name!r}; {hint}")
    return tuple(record for name, record in known.items() if name in wanted)


def as_measure(name: str, extra: Extra) -> Measure:
    """The record of a measure of your own: the one that it has, or one made of a function."""
    if isinstance(extra, Measure):
        if extra.name != name:
            raise ValueError(f"extra has {extra.name!r} under the name {name!r}; use one of them.")
        if extra.evaluate is None:
            raise ValueError(
                f"the extra measure {name!r} has no evaluate=..., so it can't be taken."
            )
        return extra

    def evaluate(batch: Batch) -> Tensor:
        try:
            value = extra(batch.features, batch.logits, batch.labels, batch.weight)
        except (NotFiniteError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"the extra measure {name!r} failed ({cause})") from error
        value = torch.as_tensor(value)
        if value.dim():
            raise ValueError(
                f"the extra measure {name!r} returned shape {tuple(value.shape)}; return a "
                "scalar, the mean over the examples it is given."
            )
        return value

    return Measure(name, evaluate=evaluate)
