"""What the records say of the measures, and that a measure in a file of its own is found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from grokscope import measures
from grokscope.engine.loop import Training
from grokscope.interventions import Penalty
from grokscope.measures import Measure, record_of, records
from grokscope.probe import Probe
from grokscope.spec import Phase
from made_clusters import OPTIMIZERS, by_hand, clusters, of

# As they were before there were records: programs outside read them.
NAMES = [
    "accuracy",
    "angle_deviation",
    "collapse_flatness_bound",
    "collapse_offset",
    "collapse_radius",
    "collapse_residual",
    "collapse_scale",
    "entropy",
    "feature_norm",
    "feature_robustness",
    "generalisation_gap",
    "gini",
    "logit_scale",
    "loss",
    "margin",
    "matched_temperature",
    "mean_class_angle",
    "nc1_pinv",
    "nc1_quotient",
    "nc2_equiangularity",
    "nc2_equinorm",
    "nc2_etf_distance",
    "nc3_self_duality",
    "nc4_agreement",
    "nc4_means",
    "ncc",
    "ncc_unbiased",
    "published_penalty",
    "relative_flatness",
    "relative_flatness_bound",
    "relative_flatness_matched",
    "representativeness",
    "representativeness_kde",
    "weight_norm",
]
LOGGED = [
    "parameter_norm",
    "trained_parameter_norm",
    "minibatch_loss",
    "published_flatness",
    "diverged",
]
UNITS = {"nats", "degrees", "share", "probability", ""}


def test_every_measure_has_a_record_under_the_name_it_always_had():
    probed = [name for name, record in records().items() if record.is_probed]
    assert set(NAMES) <= set(probed)
    assert {*NAMES, *LOGGED} <= set(records())
    assert all(record.name == name for name, record in records().items())


@pytest.mark.parametrize("record", records().values(), ids=records())
def test_a_record_says_what_tables_and_docs_need(record):
    assert record.title and record.formula and record.range and record.cost
    assert record.unit in UNITS
    assert "\n" not in record.formula
    for text in (record.title, record.note, record.source, record.direction):
        assert text == text.strip() and "  " not in text


def test_titles_are_not_shared_by_two_measures():
    titles = [record.title for record in records().values()]
    assert len(set(titles)) == len(titles)


def test_any_name_in_a_table_of_metrics_has_a_record():
    assert record_of("ncc") is records()["ncc"]
    assert record_of("penalty_relative_flatness").title == "penalty: exact κ"
    assert record_of("penalty_relative_flatness").unit == "nats"
    mine = record_of("spread_of_mine")
    assert (mine.name, mine.title, mine.unit) == ("spread_of_mine", "spread of mine", "")


def test_a_need_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="the measure 'mine' needs 'luck', which is not one of"):
        Measure("mine", needs=("luck",))


def test_records_cannot_be_changed():
    with pytest.raises(TypeError):
        records()["mine"] = Measure("mine")
    with pytest.raises(AttributeError):
        records()["ncc"].title = "another"


# A measure of ours is one file ------------------------------------------------------------------

MINE = """
from grokscope.measures.record import Measure

RECORDS = (
    Measure(
        name="mean_square_logit",
        title="mean square logit",
        unit="nats",
        formula="mean z²",
        range="≥ 0",
        cost="O(n C)",
        evaluate=lambda batch: batch.logits.square().mean(dim=-1),
        differentiable=True,
    ),
    Measure(
        name="rank_of_features",
        needs=("memory",),
        evaluate=lambda batch: __import__("torch").linalg.matrix_rank(batch.features.double()),
    ),
)
"""


@pytest.fixture
def one_more_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    records.cache_clear()
    yield
    monkeypatch.undo()
    records.cache_clear()


def test_a_measure_in_a_file_of_its_own_is_measured_by_every_probe(one_more_file):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4)).double()
    inputs, labels = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 4
    whole = Probe(model).measure([(inputs[:15], labels[:15]), (inputs[15:], labels[15:])])
    expected = float(model(inputs).detach().square().mean())
    assert whole["mean_square_logit"] == pytest.approx(expected, rel=1e-12)
    assert whole["rank_of_features"] == 3
    assert "nats" in next(line for line in str(whole).splitlines() if "mean_square" in line)
    streamed = Probe(model, memory=0).measure([(inputs, labels)])
    assert streamed["mean_square_logit"] == pytest.approx(expected, rel=1e-12)
    assert "more memory=" in streamed.left_out["rank_of_features"]


def test_a_measure_in_a_file_of_its_own_is_a_penalty_by_its_name_and_is_logged(one_more_file):
    with pytest.raises(ValueError, match="'rank_of_features' can't be a penalty"):
        Penalty(measure="rank_of_features", weight=1.0)
    phase = Phase(
        until=5,
        optimizer=OPTIMIZERS["sgd"],
        penalties=(Penalty(measure="mean_square_logit", weight=0.1),),
    )
    training = Training(clusters(), of(phase))
    rows = [row for tick in training.run() for row in tick.rows]
    task = clusters()
    values = by_hand(
        phase, task, penalty_of=lambda f, logits, y, w: logits.square().mean(), weight=0.1
    )
    for (name, tensor), other in zip(
        training.task.model.state_dict().items(), task.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(tensor, other, msg=name)
    logged = {row.measure: row.value for row in rows if row.step == 1}
    assert math.isclose(logged["penalty_mean_square_logit"], values[0], rel_tol=1e-9)
    assert record_of("penalty_mean_square_logit").title == "penalty: mean square logit"


def test_two_measures_of_one_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "twice.py").write_text(MINE.replace("mean_square_logit", "ncc"))
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    records.cache_clear()
    try:
        with pytest.raises(ValueError, match="two measures are called 'ncc'"):
            records()
    finally:
        monkeypatch.undo()
        records.cache_clear()
