"""A made-up study that looks like a run of the grokking experiment, and its milestones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from grokscope.analysis.claims import ClaimReport, Finding
from grokscope.report import Study

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
        **{f"extra_{i}": noise(0.2) for i in range(12)},
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


def milestone_frame(seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    rows = [("grokking", seed, *map(float, MILESTONES[seed]), 0.98) for seed in seeds]
    columns = ["arm", "seed", "memorised", "onset", "generalised", "stable_after"]
    return pd.DataFrame(rows, columns=columns)


def onsets(seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """Onsets as `Study.onsets` wants them; one was not found."""
    at = {
        ("memorised", ""): 458,
        ("ncc", "train"): 160,
        ("ncc", "validation"): 260,
        ("relative_flatness", "train"): 520,
        ("relative_flatness_bound", "train"): 530,
        ("published_flatness", "train"): 1900,
        ("representativeness", "validation"): 2450,
        ("generalisation", ""): 2350,
    }
    rows = []
    for (measure, split), step in at.items():
        for index, seed in enumerate(seeds):
            middle = step * (0.93 + 0.07 * index)
            rows.append(("grokking", measure, split, seed, middle, middle * 0.9, middle * 1.12))
    frame = pd.DataFrame(rows, columns=["arm", "measure", "split", "seed", "step", "low", "high"])
    missing = (frame.measure == "representativeness") & (frame.seed == seeds[0])
    frame.loc[missing, ["step", "low", "high"]] = np.nan
    return frame


def correlations() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    measures = ("relative_flatness", "relative_flatness_bound", "published_flatness", "ncc")
    for measure in measures:
        for with_ in ("generalisation_gap", "validation accuracy"):
            for given in ("", "loss"):
                rho = float(rng.uniform(-0.9, 0.9))
                rows.append((measure, with_, given, "plateau", rho, rho - 0.12, rho + 0.09))
    columns = ["measure", "with", "given", "window", "rho", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def claims() -> list[ClaimReport]:
    def finding(
        claim: str, basis: str, verdict: str, effect: float, half: float, unit: str
    ) -> Finding:
        seeds = tuple((seed, effect + i * half / 3) for i, seed in enumerate(SEEDS))
        interval = (effect - half, effect + half)
        reason = f"In 3 of 3 seeds it is {effect:,.3g} {unit} ({half:,.3g} either way)."
        return Finding(claim, basis, verdict, effect, interval, unit, 3, seeds, reason)

    return [
        ClaimReport(
            "C1",
            "In grokking NCC falls during memorisation, before validation accuracy rises.",
            finding("C1", "ncc", "supported", -2130, 160, "steps"),
        ),
        ClaimReport(
            "C2",
            "In grokking relative flatness stays high during memorisation and falls when "
            "generalisation begins.",
            finding("C2", "relative_flatness", "contradicted", -1890, 140, "steps"),
            (
                finding("C2", "relative_flatness_bound", "contradicted", -1870, 155, "steps"),
                finding("C2", "published_flatness", "supported", -120, 210, "steps"),
            ),
            note="On the plateau kappa follows the training loss.",
        ),
        ClaimReport(
            "C15",
            "NCC correlates strongly with generalisation, though it is not necessary.",
            finding("C15", "ncc", "undecided", 0.613, 0.41, "rank correlation"),
        ),
    ]


def study(seeds: Sequence[int] = SEEDS, **changes: Any) -> Study:
    """The whole study; ``changes`` replace its fields."""
    whole = Study(
        name="grokking",
        title="Memorisation turns into generalisation",
        question="When does neural collapse set in, and when does the head become flat?",
        metrics=metrics(seeds),
        claims=claims(),
        milestones=milestone_frame(seeds),
        correlations=correlations(),
        onsets=onsets(seeds),
        settings={
            "name": "grokking",
            "preset": "default",
            "seeds": list(seeds),
            "arms": {"grokking": {"task": {"modulus": 97, "train_fraction": 0.4}}},
        },
        environment={"python": "3.12.3", "torch": "2.13.0", "device": {"name": "CPU", "cores": 2}},
        paper=PAPER,
        figures=(
            "grokking",
            "onsets",
            "collapse",
            "confidence",
            "representativeness",
            "partial_correlations",
        ),
        notes=("One run spiked after step 3,000.",),
        date="2026-11-24",
    )
    return replace(whole, **changes)
