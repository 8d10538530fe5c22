"""A made-up store of a large sweep, written in seconds, and what reading it costs.

``python -m benchmarks.large_store [FOLDER]`` writes 100 arms with 10 seeds, 60 looks and 33
measures on two splits (1,000 segments, 4 million rows), reads them, and prints CPU seconds.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.spec import Experiment, Observation, Optimizer, Phase, Run, to_yaml

MEASURES = ("accuracy", "loss", "relative_flatness", "ncc", "gini", "entropy", "logit_scale")
UNTIL = 3_500


def large_experiment(arms: int = 100, seeds: int = 10) -> Experiment:
    """A sweep over the learning rate, as `grokscope.spec.sweep` names it."""
    rates = [1e-4 * (1 + number) for number in range(arms)]
    runs = {
        f"grokking, lr={rate:g}": Run(
            phases=(Phase(until=UNTIL, optimizer=Optimizer(lr=rate, weight_decay=1.0)),),
            observation=Observation(per_decade=6, max_gap=60),
        )
        for rate in rates
    }
    return Experiment(
        name="large-sweep",
        title="A large sweep",
        question="How long does it take to read?",
        arms=runs,
        seeds=tuple(range(1, seeds + 1)),
        claims=("C1", "C2"),
    )


def write_large_store(
    folder: Path, experiment: Experiment, looks: int = 60, measures: int = 33
) -> Store:
    """Write every segment of the experiment as finished, with made-up metrics.

    Args:
        folder: Where to.
        experiment: Whose segments; each run is one phase.
        looks: Points at which a run was measured.
        measures: Measures at each look, on each of two splits.
    """
    store = Store(folder)
    store.save_experiment(experiment)
    names = [*MEASURES, *(f"measure_{k}" for k in range(measures - len(MEASURES)))]
    steps = np.linspace(0, UNTIL, looks).astype(np.int64)
    places, splits, kinds = (
        axis.ravel()
        for axis in np.meshgrid(np.arange(looks), np.arange(2), np.arange(measures), indexing="ij")
    )
    columns = {
        "step": pa.array(steps[places]),
        "epoch": pa.array(steps[places] / 8),
        "replica": pa.array(np.zeros(len(places), np.int64)),
        "split": pa.DictionaryArray.from_arrays(pa.array(splits), ["train", "validation"]),
        "measure": pa.DictionaryArray.from_arrays(pa.array(kinds), names),
    }
    generator = np.random.default_rng(0)
    onset = np.array([400.0, 2_000.0])[splits]  # the training data are fitted before the others
    for _, seed, (segment,) in experiment.runs():
        target = store.segments / segment.id
        target.mkdir(parents=True)
        values = generator.normal(1.0, 0.05, len(places))
        share = 1 / (1 + np.exp((onset + 20 * seed - steps[places]) / 100))
        columns["value"] = pa.array(np.where(kinds == 0, share, values))
        pq.write_table(pa.table(columns), target / "metrics.parquet", compression="zstd")
        facts = {"step": UNTIL, "optimizer": "adamw", "threads": 1, "seconds": 60.0}
        (target / "state.json").write_text(json.dumps(facts | {"diverged": False}))
        (target / "spec.yaml").write_text(to_yaml(segment.run))
        (target / "environment.json").write_text(json.dumps({"torch": "2.9", "seconds": 60.0}))
    return store


def cpu_seconds(work: Callable[[], object]) -> float:
    """What a call costs, summed over threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Write the store where there is none, and read it in the steps of a report."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    if not (folder / "experiment.yaml").is_file():
        write_large_store(folder, large_experiment())
    store = Store(folder)
    print(f"pandas           {cpu_seconds(lambda: importlib.import_module('pandas')):6.2f} s, once")
    print(f"experiment.yaml  {cpu_seconds(store.experiment):6.2f} s")
    experiment = large_experiment()  # nothing is cached yet
    steps = {
        "segments and ids": lambda: [s.id for _, _, chain in experiment.runs() for s in chain],
        "Store.metrics": lambda: store.metrics(experiment),
        "Plan": lambda: Plan(experiment, store),
        "environments": lambda: store.environments(experiment),
    }
    seconds = {name: cpu_seconds(step) for name, step in steps.items()}
    for name, spent in seconds.items():
        print(f"{name:16} {spent:6.2f} s")
    print(f"{'in all':16} {sum(seconds.values()):6.2f} s")


if __name__ == "__main__":
    main()
