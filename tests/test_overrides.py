"""An experiment changed from the command line: paths, values, seeds, and what errors say."""

from __future__ import annotations

import pytest

from grokscope.experiments import find_experiment
from grokscope.spec import (
    CustomTask,
    Experiment,
    ModularArithmetic,
    Optimizer,
    Phase,
    Run,
    override,
    with_seeds,
)

PHASES = (Phase(until=10), Phase(until=20))
TWO = Experiment(
    name="two",
    title="Two",
    question="?",
    arms={"plain": Run(phases=PHASES), "decay 0.1": Run(phases=PHASES)},
)
OWN = Experiment(
    name="own",
    title="Own",
    question="?",
    arms={
        "a": Run(
            phases=PHASES,
            task=CustomTask(function="my.py:task", arguments={"width": 8, "deep": {"lr": 1.0}}),
        )
    },
)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("batch_size=64", {"batch_size": 64}),
        ("task.modulus=53", {"task": ModularArithmetic(modulus=53)}),
        ("task.vocabulary=null", {"task": ModularArithmetic(vocabulary=None)}),
        ("task.operation=cubic", {"task": ModularArithmetic(operation="cubic")}),
        (" batch_size = 64 ", {"batch_size": 64}),
        (
            "phases.0.optimizer.lr=1e-4",
            {"phases": (Phase(until=10, optimizer=Optimizer(lr=1e-4)), PHASES[1])},
        ),
        (
            "phases.-1.optimizer.betas=[0.5, 0.6]",
            {"phases": (PHASES[0], Phase(until=20, optimizer=Optimizer(betas=(0.5, 0.6))))},
        ),
        ("phases=[{until: 7}]", {"phases": (Phase(until=7),)}),
        ("task.kind=modular", {"task": ModularArithmetic()}),
        ("task={kind: custom, function: 'a:b'}", {"task": CustomTask(function="a:b")}),
    ],
)
def test_a_path_changes_that_setting_of_every_arm_and_nothing_else(assignment, expected):
    changed = override(TWO, [assignment])
    arm = Run(**({"phases": PHASES} | expected))
    assert changed.arms == {"plain": arm, "decay 0.1": arm}
    assert changed.model_copy(update={"arms": TWO.arms}) == TWO


@pytest.mark.parametrize("arm", ["plain", "decay 0.1"])
def test_a_path_may_name_one_arm_even_with_a_dot_in_its_name(arm):
    changed = override(TWO, [f"arms.{arm}.batch_size=3"])
    assert {name for name, run in changed.arms.items() if run.batch_size == 3} == {arm}


def test_assignments_are_made_in_order_and_checked_together():
    # Each alone is impossible: 9 is no prime, and 11 leaves nothing of so small a share.
    changed = override(TWO, ["task.operation=division", "task.modulus=9", "task.modulus=11"])
    assert {run.task for run in changed.arms.values()} == {
        ModularArithmetic(operation="division", modulus=11)
    }


def test_without_assignments_nothing_changes():
    for each in (TWO, OWN, find_experiment("grokking", "paper")):
        assert override(each, []) == each


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("1e-3", 0.001),
        ("2E5", 2e5),
        ("true", True),
        ("null", None),
        ("", None),
        ("relu", "relu"),
        ("'1e-3'", "1e-3"),
        ("[1, [1e-2, b]]", [1, [0.01, "b"]]),
        ("{a: 1}", {"a": 1}),
        ("a=b", "a=b"),
    ],
)
def test_an_argument_of_a_task_of_ones_own_has_the_type_that_was_written(text, value):
    changed = override(OWN, [f"task.arguments.width={text}"])
    found = changed.arms["a"].task.arguments["width"]
    assert (found, type(found)) == (value, type(value))


def test_a_task_of_ones_own_takes_new_arguments():
    changed = override(OWN, ["task.arguments.depth=3", "task.arguments.deep.lr=2.0"])
    assert changed.arms["a"].task.arguments == {"width": 8, "depth": 3, "deep": {"lr": 2.0}}


REFUSED = [
    (TWO, "batch_size", "write it as path=value, e.g. task.modulus=53"),
    (TWO, "=3", "write it as path=value, e.g. task.modulus=53"),
    (
        TWO,
        "batchsize=3",
        "arms.plain has no 'batchsize'. Did you mean batch_size? "
        "It has: task, batch_size, phases, observation, seeds",
    ),
    (
        TWO,
        "task.modulos=3",
        "arms.plain.task has no 'modulos'. Did you mean modulus? It has: kind,",
    ),
    (TWO, "phases.2.until=3", "arms.plain.phases has no '2'. It has: 0, 1"),
    (TWO, "phases.-3.until=3", "arms.plain.phases has no '-3'. It has: 0, 1"),
    (TWO, "phases.--1.until=3", "arms.plain.phases has no '--1'. It has: 0, 1"),
    (TWO, "phases.²=3", "arms.plain.phases has no '²'. It has: 0, 1"),
    (TWO, "phases.first=3", "arms.plain.phases has no 'first'. It has: 0, 1"),
    (TWO, "task.modulus.x=3", "arms.plain.task.modulus has no 'x'. It is a value"),
    (TWO, "task.kind.0=3", "arms.plain.task.kind has no '0'. It is a value"),
    (TWO, "task.vocabulary.x=3", "arms.plain.task.vocabulary has no 'x'. It is a value"),
    (TWO, "arms.plane.batch_size=3", "arms has no 'plane'. Did you mean plain? It has: plain, dec"),
    (TWO, "batch_size=[1", "while parsing a flow sequence"),
    (TWO, "batch_size=2020-13-45", "month must be in 1..12"),
    (
        TWO,
        "arms.plain.batch_size=many",
        "arms.plain.batch_size: Input should be a valid integer, unable to parse string as an "
        "integer (got 'many')",
    ),
    (TWO, "arms.plain.batch_size=1.5", "arms.plain.batch_size: Input should be a valid integer, g"),
    (TWO, "arms.plain.phases.0.until=30", "arms.plain: phases must end one after the other"),
    (TWO, "arms.plain.task.heads=5", "arms.plain.task: heads=5 must divide width=128"),
    (TWO, "arms.plain.task.kind=vision", "arms.plain.task: Input tag 'vision' found using 'kind'"),
    (
        TWO,
        "task.kind=images",
        "task.kind cannot be changed alone, because the other settings are those of 'modular'; set "
        "the whole task, as in --set 'task={kind: images, ...}'",
    ),
    (
        OWN,
        "arms.a.task.kind=modular",
        "task.kind cannot be changed alone, because the other settings are those of 'custom'; set ",
    ),
    (TWO, "task.kind=[1]", "arms.plain.task: "),
    (OWN, "task.argument.width=3", "arms.a.task has no 'argument'. Did you mean arguments?"),
    (OWN, "task.arguments.new.lr=3", "arms.a.task.arguments has no 'new'. It has: width, deep"),
    (OWN, "task.arguments.deep.mr=3", "arms.a.task.arguments.deep has no 'mr'. It has: lr"),
    (OWN, "task.arguments.day=2020-01-01", "arms.a.task.arguments.day: input was not a valid JSO"),
]


@pytest.mark.parametrize(
    ("experiment", "assignment", "problem"), REFUSED, ids=[each[1] for each in REFUSED]
)
def test_an_impossible_assignment_is_repeated_with_what_would_be_possible(
    experiment, assignment, problem
):
    with pytest.raises(ValueError) as refused:
        override(experiment, [assignment])
    message = str(refused.value)
    assert message.startswith(f"--set {assignment}: {problem}")
    assert "\n" not in message


def test_an_arm_without_the_setting_is_named():
    both = TWO.model_copy(update={"arms": {**TWO.arms, **OWN.arms}})
    with pytest.raises(ValueError, match=r"arms\.a\.task has no 'modulus'"):
        override(both, ["task.modulus=53"])


# Seeds.


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", (7,)), ("1,42,15213", (1, 42, 15213)), (" 3, 2 ", (3, 2))]
)
def test_seeds_are_written_with_commas(text, seeds):
    assert with_seeds(TWO, text) == TWO.model_copy(update={"seeds": seeds})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "write whole numbers, e.g. 1,42,15213"),
        ("1,,2", "write whole numbers, e.g. 1,42,15213"),
        ("1;2", "write whole numbers, e.g. 1,42,15213"),
        ("1.5", "write whole numbers, e.g. 1,42,15213"),
        ("3,3", "settings: seeds must be distinct, but are 3, 3"),
        ("4,-1", "seeds.1: Input should be greater than or equal to 0 (got -1)"),
        (str(2**63), f"seeds.0: Input should be less than {2**63} (got {2**63})"),
    ],
)
def test_seeds_that_cannot_be_are_refused(text, problem):
    with pytest.raises(ValueError) as refused:
        with_seeds(TWO, text)
    assert str(refused.value) == f"--seeds {text}: {problem}"
