"""Claims by name, ours and a user's, and what becomes of those that cannot be judged."""

from __future__ import annotations

import ast
from pathlib import Path

import pandas as pd
import pytest
from worlds import AT_GENERALISATION, World

import grokscope
from grokscope.analysis import Results, evaluate_claims, find_claim, list_claims
from grokscope.analysis.claims import SMOKE_TEST
from grokscope.analysis.claims.rules import KAPPA_FACTOR, MARGIN, is_counterexample
from grokscope.spec import Contrast, Experiment, Phase, Run
from made_store import accuracies, made_experiment, stored

MINE = """
from grokscope.analysis import Finding, claim

@claim("mine", title="All generalise", statement="Every run generalises.")
def mine(runs):
    count = sum(run.generalised.found for run in runs)
    verdict = "supported" if count == len(runs) else "contradicted"
    return [Finding(basis="accuracy", verdict=verdict, seeds=count, reason="...")]

@claim("pairs", statement="Arms end where the baseline ends.", compares=True)
def pairs(comparisons):
    return [
        Finding(basis=pair.name, verdict="supported", reason="...",
                effect=pair.difference("accuracy", "validation").effect)
        for pair in comparisons
    ]

@claim("fails", statement="This test fails.")
def fails(runs):
    return runs["nothing"]

@claim("odd", statement="This test returns something else.")
def odd(runs):
    return ["supported"]

def plain(runs):
    return []
"""


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "my_claims.py"
    path.write_text(MINE)
    return path


def worlds(**settings) -> Results:
    return Results.from_metrics(World(seeds=(1, 42), **settings).metrics())


def test_the_paper_s_claims_are_found_by_number_in_their_order_and_say_what_they_claim():
    claims = list_claims()
    numbers = (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)
    assert [claim.id for claim in claims] == [f"C{number}" for number in numbers]
    for claim in claims:
        assert find_claim(claim.id) is claim
        assert claim.statement.endswith(".")
        assert len(claim.title) < 60
        for symbol in ("NCC", "kappa", "κ", "NC1", "C1"):
            assert symbol not in claim.title + claim.statement


@pytest.mark.parametrize(("name", "meant"), [("c7", "C7"), ("C77", "C7"), ("C 14", "C14")])
def test_an_unknown_claim_is_refused_with_the_closest_one(name, meant):
    with pytest.raises(ValueError, match=f"Did you mean {meant}"):
        find_claim(name)


def test_a_user_s_claim_is_judged_like_ours(mine):
    report = evaluate_claims(worlds(), [f"{mine}:mine"])[0]
    assert (report.claim, report.title) == ("mine", "All generalise")
    assert report.statement == "Every run generalises."
    assert (report.headline.verdict, report.headline.seeds) == ("supported", 2)
    (lost,) = evaluate_claims(worlds(generalises=float("inf")), [f"{mine}:mine"])
    assert lost.headline.verdict == "contradicted"


def test_a_user_s_claim_on_arms_gets_the_contrasts_that_name_it(mine):
    name = f"{mine}:pairs"
    world = World(seeds=(1, 42)).metrics()
    run = Run(phases=(Phase(until=4000),))
    experiment = Experiment(
        name="x", title="X", question="?", arms={"baseline": run, "other": run},
        claims=(name, "C7"),
        contrasts=(Contrast(claim=name, arm="other"), Contrast(claim="C7", arm="other")),
    )  # fmt: skip
    both = pd.concat([world.assign(arm="baseline"), world.assign(arm="other")])
    theirs, ours = evaluate_claims(Results.from_metrics(both, experiment))
    assert theirs.compares
    assert [(one.basis, one.effect) for one in theirs.findings()] == [("other", 0.0)]
    assert ours.claim == "C7"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("{folder}/gone.py:mine", "there is no file"),
        ("{file}:main", "Did you mean mine"),
        ("{file}:plain", "not a claim"),
        ("{file}:fails", "TypeError: list indices"),
        ("{file}:odd", "a list of Finding"),
        ("C99", "there is no claim 'C99'"),
    ],
)
def test_what_cannot_be_judged_says_so_and_the_others_are_judged(mine, reference, why):
    name = reference.format(folder=mine.parent, file=mine)
    lost, found = evaluate_claims(worlds(), [name, f"{mine}:mine"])
    assert lost.headline.verdict == "undecided"
    assert lost.headline.reason.startswith("Not judged: ")
    assert why in lost.headline.reason
    assert found.headline.verdict == "supported"


def test_code_in_the_folder_of_results_is_not_run(mine, tmp_path):
    results = worlds()
    results.folder = tmp_path
    mine.write_text("raise SystemExit('this code was run')")
    (report,) = evaluate_claims(results, [f"{mine}:mine"])
    assert report.headline.verdict == "undecided"
    assert "lies in the folder of results, from which no code is run" in report.headline.reason


def test_results_know_the_folder_that_they_were_read_from(tmp_path):
    store = stored(tmp_path / "results", made_experiment(), {1: accuracies(), 42: accuracies()})
    results = Results.read(store)
    assert results.folder == store.folder
    assert results.only(next(iter(results.arms))).folder == store.folder


def test_a_smoke_test_gets_no_verdict(mine):
    results = worlds(falls={"train/relative_flatness": AT_GENERALISATION})
    assert evaluate_claims(results, ["C2"])

    class SmokeTest:
        smoke_test = True
        claims = ("C2",)

    results.experiment = SmokeTest()
    assert evaluate_claims(results) == evaluate_claims(results, ["C2"]) == []
    assert SMOKE_TEST.endswith(".")


@pytest.mark.parametrize(
    ("kappa", "accuracy", "expected"),
    [(3.0, 0.0, True), (2.99, 0.0, False), (100, -0.029, True), (100, -0.031, False), (3, 1, True)],
)
def test_a_counterexample_is_three_times_as_sharp_and_not_less_accurate_by_three_hundredths(
    kappa, accuracy, expected
):
    assert is_counterexample(kappa, accuracy) is expected


def test_what_a_counterexample_is_stands_in_one_place():
    """No other module has thresholds of sharpness or accuracy of its own."""
    assert (KAPPA_FACTOR, MARGIN) == (3.0, 0.03)
    package = Path(grokscope.__file__).parent / "analysis"
    names = {"KAPPA_FACTOR", "FITS", "SHARP", "AS_GOOD"}
    homes = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in names
    }
    assert homes == {"rules.py"}
