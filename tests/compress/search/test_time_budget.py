"""Tests of compress.search.time_budget."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.search.journal import PARENT, Task, candidates
from compress.search.next_task import Plan
from compress.search.pareto_front import Goal, choose
from compress.search.time_budget import Budget, epochs_for, next_task
from tests.compress.simulated import BUDGET, World, search

PLAN = Plan(goal=Goal(), importances=("l2", "fpgm"), epochs=4)
PARENT_RECORD = World().run(PARENT)


def within(seconds: float, used: float = 0.0) -> Budget:
    return dataclasses.replace(BUDGET, seconds=seconds, used=used)


def test_the_artefact_itself_is_measured_whatever_the_time() -> None:
    assert next_task([], PLAN, within(0.001)) == PARENT


@given(st.floats(30.0, 2000.0), st.floats(0.05, 0.9), st.sampled_from([0, 2, 8]))
def test_no_search_takes_longer_than_it_may(seconds: float, edge: float, epochs: int) -> None:
    plan = dataclasses.replace(PLAN, epochs=epochs, most_epochs=2 * epochs)
    records = search(World(edge=edge), plan, seconds=seconds)
    # The estimates are exact after the first of a kind; rankings and recoveries are cheaper than their first guess or
    # off by less than the end's reserve.
    assert sum(record.seconds for record in records) <= max(seconds, PARENT_RECORD.seconds) + 20
    assert choose(candidates(records), plan.goal) is not None


@pytest.mark.parametrize(("seconds", "epochs"), [(100, 4), (90, 2), (87, 1)])
def test_a_recovery_too_long_for_the_time_left_is_shortened(seconds: float, epochs: int) -> None:
    # The artefact takes 20 s and the rankings 6; the end keeps 37; a first candidate is taken for 20 s and 3 per epoch.
    records = search(World(edge=0.55), PLAN, seconds=seconds)
    first = next(record.task for record in records if record.task.kind == "measure" and record.task.importance)
    assert first == Task(kind="measure", ratio=0.5, importance="fpgm", epochs=epochs)


def test_a_recovery_of_less_than_an_epoch_is_left_out() -> None:
    ranks = [Task(kind="rank", ratio=0.5, importance=name) for name in ("l2", "fpgm", "random")]
    records = [PARENT_RECORD, *(World().run(task) for task in ranks)]
    slow = dataclasses.replace(within(1000, 26), train_images=1_000_000)
    assert next_task(records, PLAN, slow) == Task(kind="measure", ratio=0.5, importance="fpgm")


def test_nothing_is_ranked_without_the_time_to_make_it_a_candidate() -> None:
    # 10 s are guessed for the first ranking, 20 for a candidate, and the end keeps 37.
    assert next_task([PARENT_RECORD], PLAN, within(20 + 66, 20)) is None
    task = next_task([PARENT_RECORD], PLAN, within(20 + 68, 20))
    assert task == Task(kind="rank", ratio=0.5, importance="l2")


def test_more_minutes_go_on_where_fewer_ended() -> None:
    world = World(edge=0.2)
    short = search(world, PLAN, seconds=120)
    longer = search(world, PLAN, seconds=1200, records=short)
    assert longer[: len(short)] == short
    assert len(longer) > len(short)


def test_estimates_come_from_what_was_done() -> None:
    rank = Task(kind="rank", ratio=0.5, importance="l2")
    measure = Task(kind="measure", ratio=0.5, importance="l2", epochs=2)
    budget = within(1000)
    assert budget.estimate(rank, [PARENT_RECORD]) == 10
    records = [PARENT_RECORD, World().run(rank)]
    assert budget.estimate(rank, records) == 2
    # 1,000 training images at 0.001 s, 3 x 0.5 + 1 passes each, and half a pass for 1,000 validation images.
    assert budget.epoch_seconds(0.5, records) == pytest.approx(3.0)
    assert budget.estimate(measure, records) == pytest.approx(20 + 2 * 3.0)
    records.append(World().run(measure))
    assert budget.epoch_seconds(0.5, records) == pytest.approx(5.0)
    assert budget.epoch_seconds(0.25, records) == pytest.approx(5.0 * 2.0 / 3.0)


@pytest.mark.parametrize(
    ("seconds", "most", "epochs"), [(1.0, 10, 1), (90.0, 10, 6), (900.0, 10, 10), (900.0, 100, 60)]
)
def test_a_recovery_gets_a_fifth_of_the_time(seconds: float, most: int, epochs: int) -> None:
    assert epochs_for(within(seconds), [PARENT_RECORD], most) == epochs
    recovered = World().run(Task(kind="measure", ratio=0.5, importance="l2", epochs=2))
    assert epochs_for(within(seconds), [PARENT_RECORD, recovered], most) == epochs


def test_the_end_keeps_its_time() -> None:
    assert BUDGET.reserve([]) == 0
    assert BUDGET.reserve([PARENT_RECORD]) == pytest.approx(3.5 * 10 + 2 * 1000 * 0.001)
