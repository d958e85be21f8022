"""Tests of compress.search.pareto_front."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compress.search.journal import FLOAT, INT8, PARENT, Candidate, Task
from compress.search.pareto_front import Goal, choose, contenders, draw, drop, eligible, front, label, nearest, remedy
from zoo.base.errors import UsageError

PRUNED = Task(kind="measure", ratio=0.5, importance="l2", epochs=3)


def candidate(
    top1: float = 0.9,
    share: float = 0.5,
    size: int = 1_000_000,
    *,
    task: Task = PRUNED,
    precision: str = INT8,
    noise: float = 0.0,
    n: int = 1000,
) -> Candidate:
    return Candidate(
        task=task,
        precision=precision,
        n=n,
        top1=top1,
        low=top1,
        high=top1,
        macs=500,
        parameters=500,
        bytes=size,
        digest="0",
        shares=(share - noise, share, share + noise),
        parent_ms=10.0,
    )


PARENT_FILE = candidate(0.95, 1.0, 8_000_000, task=PARENT, precision=FLOAT)

several = st.lists(
    st.builds(
        lambda hits, share, size: candidate(hits / 1000, share, size),
        st.integers(900, 960),
        st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8, 1.2]),
        st.sampled_from([1_000_000, 2_000_000, 9_000_000]),
    ),
    max_size=8,
).map(lambda found: [PARENT_FILE, *found])

goals = st.builds(
    Goal,
    max_drop=st.sampled_from([0.0, 0.5, 2.0, 10.0]),
    latency_ms=st.none() | st.sampled_from([0.5, 2.0, 5.0, 20.0]),
    megabytes=st.none() | st.sampled_from([0.5, 1.0, 2.0, 10.0]),
)


def beats(one: Candidate, other: Candidate) -> bool:
    better = (one.top1 - other.top1, other.share - one.share, other.bytes - one.bytes)
    return min(better) >= 0 and max(better) > 0


@given(several)
def test_no_member_of_the_front_is_beaten_and_every_other_is(found: list[Candidate]) -> None:
    unbeaten = front(found)
    for entry in found:
        assert any(beats(other, entry) for other in unbeaten) == (entry not in unbeaten)


@given(several, goals)
def test_the_choice_meets_the_goal_is_unbeaten_and_misses_nothing(found: list[Candidate], goal: Goal) -> None:
    meeting = [
        entry
        for entry in found
        if 0.95 - entry.top1 <= goal.max_drop / 100 + 1e-9
        and (goal.latency_ms is None or entry.ms <= goal.latency_ms)
        and (goal.megabytes is None or entry.megabytes <= goal.megabytes)
    ]
    best = choose(found, goal)
    if not meeting:
        assert best is None
        return
    assert best in meeting
    assert best in front(found)
    if goal.latency_ms is None and goal.megabytes is None:
        assert best.share == min(entry.share for entry in meeting)
    else:
        assert best.top1 == max(entry.top1 for entry in meeting)


@given(several, goals)
def test_the_options_named_as_a_remedy_are_one(found: list[Candidate], goal: Goal) -> None:
    if choose(found, goal) is not None:
        assert nearest(found, goal)[0] in eligible(found, goal)
        return
    closest = nearest(found, goal)[0]
    words = remedy(closest, PARENT_FILE, goal).split()
    given_ = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    assert given_
    wider = Goal(
        max_drop=given_.get("--max-drop", goal.max_drop),
        latency_ms=given_.get("--latency-ms", goal.latency_ms),
        megabytes=given_.get("--mb", goal.megabytes),
    )
    assert closest in eligible(found, wider)


def test_equal_candidates_do_not_beat_each_other() -> None:
    twins = [candidate(), candidate(task=Task(kind="measure", ratio=0.5, importance="l1"))]
    assert front([PARENT_FILE, *twins]) == [PARENT_FILE, *twins]


def test_drop_is_in_points_and_a_drop_of_exactly_the_limit_is_kept() -> None:
    loser = candidate(0.945)
    assert drop(loser, PARENT_FILE) == pytest.approx(0.5)
    assert Goal(max_drop=0.5).accurate(loser, PARENT_FILE)
    assert not Goal(max_drop=0.5).accurate(candidate(0.944), PARENT_FILE)
    assert drop(candidate(0.96), PARENT_FILE) == pytest.approx(-1.0)


def test_the_nearest_are_those_that_miss_by_the_smallest_share() -> None:
    fast, slow, wrong = candidate(0.94, 0.5), candidate(0.95, 0.9), candidate(0.6, 0.1)
    goal = Goal(max_drop=0.5, latency_ms=4.0)
    assert nearest([PARENT_FILE, slow, wrong, fast], goal, most=2) == [fast, slow]
    assert remedy(fast, PARENT_FILE, goal) == "--max-drop 1 --latency-ms 5"
    assert remedy(candidate(0.9512, 0.12345, n=10_000), PARENT_FILE, Goal(latency_ms=1.0)) == "--latency-ms 1.24"


def test_only_close_times_are_taken_again() -> None:
    quick = candidate(0.95, 0.30, noise=0.02)
    close = candidate(0.95, 0.33, noise=0.02, task=Task(kind="measure", ratio=0.6, importance="l2"))
    slow = candidate(0.95, 0.60, noise=0.02, task=Task(kind="measure", ratio=0.9, importance="l2"))
    assert contenders([PARENT_FILE, slow, close, quick], Goal()) == [quick, close]
    assert contenders([PARENT_FILE, slow, quick], Goal()) == []
    assert contenders([PARENT_FILE, quick, dataclasses.replace(quick, task=close.task)], Goal()) == []
    assert contenders([PARENT_FILE, slow, quick], Goal(latency_ms=7.0)) == [quick]
    assert contenders([PARENT_FILE, slow, quick], Goal(megabytes=7.0)) == []


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    found = [PARENT_FILE, candidate(0.95, 0.6, 2_000_000, task=PARENT), candidate(0.94, 0.2)]
    draw(found, Goal(latency_ms=3.0), found[2], tmp_path / "pareto.png", title="net")
    plain = Image.open(tmp_path / "pareto.png").convert("RGB")
    draw(found, Goal(), None, tmp_path / "pareto.png", title="net")
    other = Image.open(tmp_path / "pareto.png").convert("RGB")
    assert plain.width > 800
    assert len(np.unique(np.asarray(plain).reshape(-1, 3), axis=0)) > 20
    assert plain.size != other.size or plain.tobytes() != other.tobytes()


def test_labels_say_what_a_candidate_is() -> None:
    assert label(PARENT_FILE) == "unpruned"
    assert label(candidate()) == "l2 0.50, 3 epochs, int8"
    assert label(candidate(task=PARENT)) == "unpruned, int8"


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"max_drop": -1.0}, "--max-drop"), ({"latency_ms": 0.0}, "--latency-ms"), ({"megabytes": -2.0}, "--mb")],
)
def test_goals_out_of_range(changes: dict[str, float], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        Goal(**changes)
