"""Tests of compress.search.candidates."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from compress.search.candidates import BF16, FLOAT, INT8, PRECISIONS, Candidate, Goal, Measured, Results
from tests.compress.search.pretended import SIZES, N, World
from zoo.base.errors import UsageError
from zoo.base.files import GRAPH, INT8_GRAPH

WORLD = World()
PARENT = WORLD.measured(Candidate(size=(28, 28)), {GRAPH: "parent"})


def of(ratio: float, precision: str = FLOAT, **changes: object) -> Measured:
    importance = "taylor" if ratio < 1 else ""
    fields = {"size": (28, 28), "ratio": ratio, "importance": importance, "epochs": 1, "precision": precision}
    candidate = Candidate(**fields | changes)  # type: ignore[arg-type]
    return WORLD.measured(candidate, {GRAPH: candidate.name, INT8_GRAPH: candidate.name})


ALL = Results(
    (
        PARENT,
        *(
            of(ratio, precision, size=size)
            for ratio, precision, size in itertools.product((0.1, 0.2, 0.3, 0.5, 0.8), PRECISIONS, SIZES.values())
        ),
    )
)
GOALS = (
    Goal(),
    Goal(max_drop=5),
    Goal(max_drop=100, latency_ms=2.0),
    Goal(max_drop=100, megabytes=1.0),
    Goal(max_drop=0),
)


def test_names_tell_candidates_apart() -> None:
    assert Candidate(size=(28, 28)).name == "unpruned-28x28 float32"
    assert (
        Candidate(size=(24, 20), ratio=0.5, importance="l2", epochs=2, precision=INT8).name == "l2-0.50-24x20-e2 int8"
    )
    assert len({entry.name for entry in ALL.entries}) == len(ALL.entries)
    assert {entry.candidate.precision: entry.candidate.file for entry in ALL.entries} == {
        FLOAT: GRAPH,
        BF16: GRAPH,
        INT8: INT8_GRAPH,
    }


def test_what_is_lost_and_how_sure_that_is() -> None:
    small = dataclasses.replace(of(0.2), right=f"{((1 << 372) - 1) << 8:x}")  # 380 hits of the parent: 8 lost, none won
    assert (PARENT.hits, small.hits) == (380, 372)
    drop, low, high = Results((PARENT, small)).drop(small)
    assert drop == 100 * 8 / N
    # Agresti & Min 2005: (8 + 1 - 64 / 402) ** 0.5 / 402 = 0.739 points around 8 / 402
    assert (low, high) == pytest.approx((1.990 - 1.449, 1.990 + 1.449), abs=0.002)
    assert Results((PARENT,)).drop(PARENT) == (0.0, 0.0, 0.0)
    one = dataclasses.replace(PARENT, candidate=small.candidate, right=f"{(1 << 379) - 1:x}")
    assert Results((PARENT, one)).drop(one)[1] < 0 < Results((PARENT, one)).drop(one)[0] == 0.25


def test_times_are_shares_of_one_yardstick() -> None:
    busy = dataclasses.replace(of(0.5), ms=(12.0, 11.0, 13.0), parent_ms=(24.0, 20.0, 26.0))
    found = Results((PARENT, busy))
    assert busy.share == 0.5
    assert (busy.speed.value, busy.speed.low, busy.speed.high) == (2.0, 20 / 11, 2.0)
    assert found.parent_ms == 10.0
    assert found.ms(busy) == 5.0


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_choice_meets_the_goal_and_is_unbeaten(goal: Goal) -> None:
    chosen = ALL.choose(goal)
    assert chosen is not None
    assert ALL.misses(chosen, goal) == {}
    assert chosen in ALL.front()
    for other in ALL.entries:
        if not ALL.misses(other, goal):
            assert (other.hits <= chosen.hits) if goal.budgeted else (other.share >= chosen.share)


def test_the_front_beats_all_others() -> None:
    def worth(entry: Measured) -> tuple[float, ...]:
        return entry.hits, -entry.share, -entry.bytes

    front = ALL.front()
    assert 3 <= len(front) < len(ALL.entries)
    for entry in ALL.entries:
        better = [other for other in front if all(a >= b for a, b in zip(worth(other), worth(entry), strict=True))]
        assert better == [entry] if entry in front else better


def test_what_would_have_met_the_goal() -> None:
    found = Results((PARENT, of(0.3, INT8), of(0.1, INT8)))
    goal = Goal(max_drop=0.2, latency_ms=1.5)
    assert found.choose(goal) is None
    remedy = found.remedy(goal)
    assert remedy == "--max-drop 0.25 --latency-ms 1.9"
    flags = dict(zip(remedy.split()[::2], map(float, remedy.split()[1::2]), strict=True))
    looser = Goal(max_drop=flags["--max-drop"], latency_ms=flags["--latency-ms"])
    assert found.choose(looser) == found.entries[1]
    assert Results((PARENT,)).remedy(Goal(megabytes=1.234)) == "--mb 10"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_drop": -1}, "--max-drop is in points"),
        ({"max_drop": float("nan")}, "--max-drop is in points"),
        ({"latency_ms": 0.0}, "--latency-ms must be a positive number of milliseconds"),
        ({"megabytes": float("inf")}, "--mb must be a positive number of MB"),
    ],
)
def test_goals_out_of_range(changes: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Goal(**changes)
