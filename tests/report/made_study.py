"""A made-up study that looks like a run of the grokking experiment, and its milestones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from grokscope.analysis.claims import ClaimReport, Finding
from grokscope.analysis.run import Results
from grokscope.report import Counterpart, Study
from grokscope.spec import Experiment, ModularArithmetic, Phase, Run

SEEDS = (1, 42, 15213)
MILESTONES = {1: (458, 2250, 3250), 42: (440, 2550, 3700), 15213: (481, 2400, 3450)}
PAPER = (
    ("steps until training accuracy is 100 %", "about 1e4", 458.0),
    ("published flatness value, highest", "about 3.3e5, at 6e3 to 1e4 steps", 312_345.6),
)


def points(until: int = 4000) -> list[int]:
    """Steps 0 to ``until``: ten a decade, then 50 apart."""
    spaced = {round(10 ** (i / 10)) for i in range(17)}
    return sorted({0} | {p for p in spaced if p < 50} | set(range(50, until + 1, 50)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def one_seed(seed: int, milestones: tuple[int, int, int], until: int = 4000) -> pd.DataFrame:
    """Metrics of one run: memorised, onset and generalised at the given steps."""
    rng = np.random.default_rng(seed)
    step = np.array(points(until))
    memorised, onset, generalised = milestones
    log = np.log10(step + 1.0)

    def rise(at: float, width: float) -> np.ndarray:
        return sigmoid((log - np.log10(at)) / width)

    def noise(size: float) -> np.ndarray:
        return np.exp(rng.normal(0, size, len(step)))

    spike = np.where((step > memorised) & (rng.random(len(step)) < 0.12), rng.uniform(2, 12), 1.0)
    fit, grok = rise(memorised / 2, 0.08), rise((onset + generalised) / 2, 0.025)
    settled = rise(memorised * 1.25, 0.04)
    accuracy = np.clip(1 - (1 - fit) * 0.99, 0.01, 1) - 0.01 * (spike > 2)
    accuracy[step >= memorised] = np.maximum(accuracy[step >= memorised], 0.985)
    held_out = np.clip(0.01 + 0.25 * fit * rise(300, 0.3) + 0.74 * grok, 0, 1)
    loss = 4.6 * (1 - fit) + 0.02 * (1 - settled) + 0.0015 * noise(0.5) * spike
    held_loss = 4.6 + 3.0 * settled * (1 - grok) - 4.58 * grok
    peak = 1 + 1.3 * rise(memorised / 2, 0.1)
    kappa = 180 * peak * np.where(settled > 0.5, 0.33, 1) * spike**0.6 * noise(0.25)
    kappa *= 1 - 0.75 * grok
    calm = (step > memorised) & (step < generalised)
    loss = np.where(calm, 0.0015 * (kappa / 120) ** 1.1 * noise(0.12), loss)
    bound = 97 * 190 * peak * np.where(settled > 0.5, 0.3, 1) * spike**0.55 * noise(0.22)
    bound *= 1 - 0.8 * grok
    published = (2e4 + 3.0e5 * fit) * noise(0.06) * (1 - 0.92 * rise((onset + 900) / 1.2, 0.05))
    ncc = 46 * (1 - 0.967 * fit) * (1 - 0.95 * grok) * noise(0.08)
    held_ncc = 44 * (1 - 0.83 * fit) * (1 - 0.995 * grok) * noise(0.08)
    gap = held_loss - loss
    train: dict[str, np.ndarray] = {
        "accuracy": accuracy,
        "loss": loss,
        "relative_flatness": kappa,
        "relative_flatness_bound": bound,
        "published_flatness": published,
        "relative_flatness_matched": 60 * noise(0.1) * (1 - 0.5 * grok),
        "matched_temperature": 1 + fit,
        "ncc": ncc,
        "ncc_unbiased": ncc * 1.02,
        "logit_scale": 1 + 14 * fit + 5 * grok,
        "mean_class_angle": 90 - 0.6 * grok + noise(0.002),
        "parameter_norm": 60 - 20 * fit,
    }
    validation: dict[str, np.ndarray] = {
        "accuracy": held_out,
        "loss": held_loss,
        "relative_flatness": kappa * 4,
        "relative_flatness_bound": bound * 4,
        "ncc": held_ncc,
        "ncc_unbiased": held_ncc * 1.02,
        "logit_scale": 1 + 11 * fit + 8 * grok,
        "mean_class_angle": 88 + grok + noise(0.002),
        "generalisation_gap": gap,
        "feature_robustness": 0.1 * kappa / 180,
        "representativeness": gap - 0.1 * kappa / 180,
        "representativeness_kde": 0.8 * (1 - grok) * fit + 0.02 * noise(0.3),
    }
    for values, scale in ((train, ncc), (validation, held_ncc)):
        values |= {
            "nc1_pinv": scale * 0.4,
            "nc1_quotient": scale * 0.7,
            "nc2_equinorm": 0.25 * (1 - 0.5 * fit) * (1 - 0.6 * grok) * noise(0.05),
            "nc2_equiangularity": 0.3 * (1 - 0.4 * fit) * (1 - 0.7 * grok) * noise(0.05),
            "nc3_self_duality": 1.2 * (1 - 0.5 * fit) * (1 - 0.5 * grok) * noise(0.03),
            "nc4_agreement": np.clip(0.05 + 0.9 * values["accuracy"], 0, 1),
            "angle_deviation": 12 * (1 - 0.4 * fit) * (1 - 0.6 * grok) * noise(0.05),
        }
    frames = []
    for split, measures in (("train", train), ("validation", validation)):
        wide = pd.DataFrame(measures)
        wide.insert(0, "step", step)
        frames.append(wide.melt("step", var_name="measure").assign(split=split))
    frame = pd.concat(frames, ignore_index=True).assign(seed=seed, arm="grokking")
    frame["epoch"] = frame["step"] / 8.0
    return frame[["arm", "seed", "step", "epoch", "split", "measure", "value"]]


def metrics(seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    return pd.concat([one_seed(seed, MILESTONES[seed]) for seed in seeds], ignore_index=True)


def claims() -> list[ClaimReport]:
    def finding(
        claim: str, basis: str, verdict: str, effect: float, half: float, unit: str
    ) -> Finding:
        return Finding(
            claim=claim, basis=basis, verdict=verdict, effect=effect, unit=unit, seeds=3,
            interval=(effect - half, effect + half),
            per_seed=tuple((seed, effect + i * half / 3) for i, seed in enumerate(SEEDS)),
            reason=f"In 3 of 3 seeds it is {effect:,.3g} {unit} ({half:,.3g} either way).",
        )  # fmt: skip

    return [
        ClaimReport(
            claim="C1",
            title="Collapse comes before generalisation",
            statement="The features cluster by class before the network is accurate on new data.",
            headline=finding("C1", "ncc", "supported", -2130, 160, "steps"),
        ),
        ClaimReport(
            claim="C2",
            statement="The last layer stays sharp, and becomes flat only when generalising begins.",
            headline=finding("C2", "relative_flatness", "contradicted", -1890, 140, "steps"),
            others=(
                finding("C2", "relative_flatness_bound", "contradicted", -1870, 155, "steps"),
                finding("C2", "published_flatness", "supported", -120, 210, "steps"),
            ),
            note="On the plateau kappa follows the training loss.",
        ),
        ClaimReport(
            claim="C15",
            statement="NCC goes with generalisation.",
            headline=finding("C15", "ncc", "undecided", 0.613, 0.41, "rank correlation"),
        ),
    ]


Change = Callable[[pd.DataFrame], pd.DataFrame]


def unchanged(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def experiment(seeds: Sequence[int] = SEEDS, arms: Sequence[str] = ("grokking",)) -> Experiment:
    run = Run(task=ModularArithmetic(train_fraction=0.4), phases=(Phase(until=4000),))
    return Experiment(
        name="grokking",
        title="Memorisation turns into generalisation",
        question="When does neural collapse set in, and when does the head become flat?",
        arms=dict.fromkeys(arms, run),
        seeds=tuple(seeds),
    )


def results(frame: pd.DataFrame, seeds: Sequence[int] = SEEDS) -> Results:
    return Results.from_metrics(
        frame, experiment(seeds, list(pd.unique(frame["arm"])) or ["grokking"])
    )


def beside(
    frame: pd.DataFrame, title: str = "grokscope's run in the paper's setting"
) -> Counterpart:
    """A second run of 25 times as many steps."""
    longer = frame.assign(step=frame["step"] * 25)
    return Counterpart(title, Results.from_metrics(longer))


def study(seeds: Sequence[int] = SEEDS, change: Change = unchanged, **fields: Any) -> Study:
    """The whole study; ``change`` is applied to its metrics, ``fields`` replace its fields."""
    asked = experiment(seeds)
    frame = change(metrics(seeds))
    whole: dict[str, Any] = {
        "results": results(frame, seeds),
        "name": "grokking",
        "title": asked.title,
        "question": asked.question,
        "claims": claims(),
        "settings": asked.model_dump(mode="json"),
        "environment": {
            "python": "3.12.3", "torch": "2.13.0", "device": {"name": "CPU", "cores": 2},
        },
        "paper": PAPER,
        "cites_paper": True,
        "figures": (
            "grokking", "onsets", "collapse", "confidence", "representativeness",
            "partial_correlations",
        ),
        "notes": ("One run spiked after step 3,000.",),
        "command": "grokscope run grokking --seeds 1,42,15213",
        "date": "2026-11-24",
    }  # fmt: skip
    return Study(**whole | fields)
