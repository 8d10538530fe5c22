"""The laws of a training step, for every case of `step_cases.py`.

They are what lets a step be captured in a CUDA graph: it is a function of memory that stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import pytest
import torch
from static import (
    OneDevice,
    OtherDeviceError,
    ReadError,
    buffers,
    fused_on_meta,
    no_reads,
    on_meta,
    unmoved,
)
from step_cases import CASES, EAGER, REPLICAS, Case
from tape import NotReplayableError, Tape
from torch import Tensor

from grokscope.engine.feed import Feed, FeedRow
from grokscope.engine.graphs import WARM_UP, CaptureCheck
from grokscope.engine.loop import Training
from grokscope.engine.replicas import Replicas
from grokscope.engine.state import State
from grokscope.engine.update import Kind, Update

DRAWING = {name for name in CASES if "dropout" in name}
STATIC = [name for name in CASES if name not in EAGER]
Step = Callable[[], None]


@pytest.fixture(autouse=True)
def small_tables(monkeypatch):
    """Tables of the feed that are refilled within a run."""
    monkeypatch.setattr("grokscope.engine.feed.ROWS", 7)


class Launching:
    """In place of the engine's launcher."""

    def __init__(self) -> None:
        self.made: Counter[Hashable] = Counter()

    def here(self) -> AbstractContextManager[object]:
        return nullcontext()

    def __call__(self, kind: Hashable, step: Step) -> None:
        self.made[kind] += 1
        self.launch(kind, step)

    def launch(self, kind: Hashable, step: Step) -> None:
        raise NotImplementedError


class Taping(Launching):
    """As on a GPU: the first steps of a kind are eager, one is taped, the others are replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.tapes: dict[Hashable, Tape] = {}

    def launch(self, kind: Hashable, step: Step) -> None:
        if self.made[kind] < WARM_UP:
            step()
        elif kind in self.tapes:
            self.tapes[kind].replay()
        else:
            with Tape() as self.tapes[kind]:
                step()


class Watching(Launching):
    """Eager steps, of which the second and third of each kind are in a context.

    Args:
        context: Makes the context.
        others: Whether the other steps are made as well.
    """

    def __init__(
        self, context: Callable[[], AbstractContextManager[object]], others: bool = True
    ) -> None:
        super().__init__()
        self.context, self.others = context, others

    def launch(self, kind: Hashable, step: Step) -> None:
        watched = self.made[kind] in (2, 3)
        if watched or self.made[kind] == 1 or self.others:
            with self.context() if watched else nullcontext():
                step()


def training(case: Case) -> Training:
    return Training(case.task(), case.segment)


def replicas(cases: list[Case]) -> Replicas:
    segments = [case.segment for case in cases]
    return Replicas([case.task() for case in cases], segments, [None] * len(cases))


def rows_of(made: Training | Replicas) -> list[tuple[object, ...]]:
    """Everything that a run reports: of replicas with their places."""
    if isinstance(made, Training):
        return [(0, *row) for tick in made.run() for row in tick.rows]
    return [
        (place, *row) for ticks in made.run() for place, tick in ticks.items() for row in tick.rows
    ]


def assert_equal(found: State, expected: State) -> None:
    assert found.step == expected.step
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


# Replay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATIC)
def test_a_replayed_step_is_an_eager_step_to_the_bit(name):
    """Over the ends of epochs and of tables, and between looks.

    Fails where a step holds a Python number that changes (a learning rate), replaces a tensor
    instead of writing to it (a memory), or takes a branch that its kind does not tell.
    """
    eager, replayed = training(CASES[name]), training(CASES[name])
    torch.manual_seed(eager.order.seed)
    expected, state = rows_of(eager), eager.state()
    replayed.launcher = taping = Taping()
    torch.manual_seed(replayed.order.seed)  # as the eager run found it: dropout draws from it
    assert rows_of(replayed) == expected
    assert_equal(replayed.state(), state)
    replays = sum(taping.made.values()) - WARM_UP * len(taping.made)
    assert replays > 0 and taping.tapes


@pytest.mark.parametrize("cases", REPLICAS.values(), ids=REPLICAS)
def test_a_replayed_step_of_replicas_is_an_eager_one_to_the_bit(cases):
    eager, replayed = replicas(cases), replicas(cases)
    replayed.launcher = taping = Taping()
    expected = rows_of(eager)
    assert rows_of(replayed) == expected
    for place in range(len(cases)):
        assert_equal(replayed.state(place), eager.state(place))
    assert taping.tapes


# Reads and addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATIC)
def test_a_step_reads_no_value_and_moves_no_memory(name):
    """Fails at the first look at a value, naming the operation, or at a tensor that was replaced.

    On a GPU the one would wait for the device at every step, and both would end a capture.
    """
    made = training(CASES[name])

    def context() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(unmoved(lambda: held_by(made)))
        stack.enter_context(no_reads())
        return stack

    made.launcher = Watching(context)
    made.advance(made.until)
    assert made.step == made.until


@pytest.mark.parametrize("cases", REPLICAS.values(), ids=REPLICAS)
def test_a_step_of_replicas_reads_no_value_and_moves_no_memory(cases):
    made = replicas(cases)

    def context() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(unmoved(lambda: of_replicas(made)))
        stack.enter_context(no_reads())
        return stack

    made.launcher = Watching(context)
    made.advance(made.trainings[0].until)
    assert made.step == made.trainings[0].until


def held_by(made: Training) -> dict[str, Tensor]:
    """All that lasts from step to step."""
    update = made.update
    more = {"ended": update.ended, "ended_at": update.ended_at, "row": made.feed._row}
    more |= {"lr": update.optimizer.param_groups[0]["lr"]}
    return buffers(made) | more | made.feed._tables


def of_replicas(made: Replicas) -> dict[str, Tensor]:
    held = {**made.parameters, **made.constants, **made.feed._tables, "row": made.feed._row}
    held |= {"sums": made.sums, "ended": made.ended, "ended_at": made.ended_at}
    for number, group in enumerate(made.optimizer.groups):
        held[f"{number}/lr"] = group.optimizer.param_groups[0]["lr"]
        for index, parameter in enumerate(group.parameters):
            for name, buffer in group.optimizer.state[parameter].items():
                held[f"{number}/{index}/{name}"] = buffer
    return held


# The meta device --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in STATIC if "bfloat16" not in name])
def test_a_step_runs_on_the_meta_device(name, monkeypatch):
    """Fails where a step needs a value, or mixes in a tensor of the host, which a copy would send.

    Tensors there have shapes alone. Autocast does not know the device.
    """
    twin = training(CASES[name])
    monkeypatch.setattr("grokscope.engine.loop.Observer", lambda *_: None)  # looks need values
    made = Training(on_meta(CASES[name].task()), CASES[name].segment)
    if made.update.of_classes:
        made.update.labels = twin.update.labels  # kinds are decided on the host
    made.launcher = watching = Watching(lambda: OneDevice("meta"), others=False)
    with fused_on_meta():
        made.advance(made.until)
    assert made.step == made.until == sum(watching.made.values())


# Broken on purpose ------------------------------------------------------------------------------


def test_a_learning_rate_that_the_host_computes_is_noticed(monkeypatch):
    def changed(feed: Feed, size: int) -> FeedRow:
        rate = feed.rates[0](len(seen) + 1)
        seen.append(rate)
        given = plain(feed, size)
        return given._replace(rate=torch.full_like(given.rate, rate))

    plain, seen = Feed.next, []
    case = CASES["equations, cosine"]
    eager = training(case)
    expected = rows_of(eager)
    monkeypatch.setattr(Feed, "next", changed)
    assert rows_of(training(case)) == expected  # eagerly it is right
    seen.clear()
    replayed = training(case)
    replayed.launcher = Taping()
    assert rows_of(replayed) != expected


def test_a_memory_that_is_replaced_instead_of_written_to_is_noticed(monkeypatch):
    def changed(update: Update, kind: Kind, *rows: Tensor, stopped: Tensor | None = None) -> None:
        after(update, kind, *rows, stopped=stopped)
        for place, memory in update.memories.items():
            update.memories[place] = memory.clone()

    after = Update.after
    monkeypatch.setattr(Update, "after", changed)
    case = CASES["images, penalty: ncc with memory"]
    made = training(case)
    made.launcher = Watching(lambda: unmoved(lambda: held_by(made)))
    with pytest.raises(AssertionError, match="memory/0"):
        made.advance(made.until)
    eager, replayed = training(case), training(case)
    replayed.launcher = Taping()
    assert rows_of(replayed) != rows_of(eager)


def test_a_check_of_values_is_noticed(monkeypatch):
    monkeypatch.setattr("grokscope.measures.checks.values_are_checked", lambda *_: True)
    made = training(CASES["equations, penalty: gini"])
    made.launcher = Watching(no_reads)
    with pytest.raises(ReadError):
        made.advance(made.until)
    made = training(CASES["equations, penalty: gini"])
    made.launcher = Taping()
    with pytest.raises(NotReplayableError):
        made.advance(made.until)


def test_a_tensor_of_the_host_is_noticed(monkeypatch):
    def changed(feed: Feed, size: int) -> FeedRow:
        given = plain(feed, size)
        return given._replace(step=torch.tensor(3))

    plain = Feed.next
    monkeypatch.setattr(Feed, "next", changed)
    case = CASES["equations, penalty: gini"]
    made = Training(on_meta(case.task()), case.segment)
    made.launcher = Watching(lambda: OneDevice("meta"))
    with fused_on_meta(), pytest.raises(OtherDeviceError):
        made.advance(made.until)


# What can't be captured --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obstacle", "step"),
    {
        "to read a value": lambda x: x.sum().item(),
        "shapes that depend on values": lambda x: x[x > 0],
        "a decomposition that waits": lambda x: torch.linalg.det(x @ x.T),
        "random numbers": lambda x: torch.nn.functional.dropout(x),
        "a tensor made of Python numbers": lambda x: x + torch.tensor([1.0]),
    }.items(),
)
def test_what_a_graph_cannot_hold_is_found(obstacle, step):
    with CaptureCheck() as check:
        step(torch.randn(4, 5))
    assert obstacle in check.why


def test_what_only_sounds_like_it_is_let_pass():
    x, index = torch.randn(4, 5), torch.tensor([1, 0])
    with CaptureCheck() as check:
        x.square().mean().sqrt() + torch.nn.functional.rms_norm(x, (5,)).rsqrt().sum()
        x[index] * x.norm() + torch.zeros(5) + torch.where(x > 0, 1.0, x)[:2]
    assert check.why == ""


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_engine_knows_which_steps_can_be_captured(name):
    """Its own check, which decides on a GPU, against the tape and the list of exceptions."""
    made, checks = training(CASES[name]), []

    def context() -> CaptureCheck:
        checks.append(CaptureCheck())
        return checks[-1]

    made.launcher = Watching(context)
    made.advance(made.until)
    found = {check.why for check in checks} - {""}
    if name not in DRAWING and name not in EAGER:
        assert found == set()
        return
    kind = "random numbers" if name in DRAWING else EAGER[name]
    assert found
    assert all(kind in why for why in found)
    if name in DRAWING:  # a graph could hold them, but not beside others in every version
        return
    made = training(CASES[name])
    made.launcher = Watching(no_reads)
    with pytest.raises(ReadError):
        made.advance(made.until)
