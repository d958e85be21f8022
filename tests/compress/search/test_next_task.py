"""Tests of compress.search.next_task, on simulated networks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.search.journal import FLOAT, INT8, PARENT, Record, Task, candidates, parent_of
from compress.search.next_task import Plan, propose
from compress.search.pareto_front import Goal, choose, drop
from tests.compress.simulated import World, search

IMPORTANCES = ("l2", "fpgm", "taylor")

worlds = st.builds(
    World,
    n=st.sampled_from([37, 200, 1000]),
    edge=st.floats(0.05, 0.95),
    fragile=st.floats(0.0, 0.5),
    slope=st.floats(0.1, 5.0),
    int8_loss=st.sampled_from([0.0, 0.002, 0.004, 0.02]),
    int8_share=st.floats(0.3, 1.5),
    overhead=st.floats(0.0, 0.5),
    floor=st.floats(0.01, 0.7),
    prunable=st.booleans(),
)
goals = st.builds(
    Goal,
    max_drop=st.sampled_from([0.0, 0.5, 1.0, 5.0]),
    latency_ms=st.none() | st.floats(0.5, 12.0),
    megabytes=st.none() | st.floats(0.1, 12.0),
)
plans = st.builds(
    Plan,
    goal=goals,
    importances=st.sampled_from([("l2",), IMPORTANCES, ("random", "bn")]),
    epochs=st.sampled_from([0, 1, 4]),
    most_epochs=st.sampled_from([0, 4, 20]),
)


def plan_for(goal: Goal, epochs: int = 3) -> Plan:
    return Plan(goal=goal, importances=IMPORTANCES, epochs=epochs)


def measured(records: list[Record]) -> list[Task]:
    return [record.task for record in records if record.task.kind == "measure"]


@given(worlds, plans, st.sampled_from([1e9, 400.0, 60.0]))
def test_every_search_ends_and_does_nothing_twice(world: World, plan: Plan, seconds: float) -> None:
    records = search(world, plan, seconds=seconds)
    assert records[0].task == PARENT
    assert max(Counter(record.task for record in records).values()) == 1
    assert len(records) < 120


@given(worlds, plans, st.integers(0, 40))
def test_a_search_cut_anywhere_goes_on_as_if_it_had_not_been(world: World, plan: Plan, cut: int) -> None:
    whole = search(world, plan)
    assert search(world, plan, records=whole[:cut]) == whole


@pytest.mark.parametrize("edge", [0.12, 0.2, 0.33, 0.5, 0.61, 0.8])
def test_without_a_budget_the_smallest_ratio_that_keeps_the_accuracy_is_found(edge: float) -> None:
    world = World(edge=edge, int8_loss=0.0)
    found = candidates(search(world, plan_for(Goal(max_drop=0.5))))
    best = choose(found, Goal(max_drop=0.5))
    assert best is not None
    assert (best.precision, best.task.importance) == (INT8, "fpgm")
    # 0.5 points are 0.0025 of ratio at this slope; the bisection ends at 0.04.
    assert edge - 0.003 <= best.task.ratio <= edge + 0.04


def test_int8_that_loses_too_much_leaves_the_choice_to_pruned_float() -> None:
    world = World(int8_loss=0.03)
    found = candidates(search(world, plan_for(Goal(max_drop=0.5))))
    best = choose(found, Goal(max_drop=0.5))
    assert best is not None
    assert best.precision == FLOAT
    assert best.task.ratio == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("latency_ms", [1.0, 2.0, 3.5, 5.0])
def test_within_a_latency_the_most_accurate_is_found(latency_ms: float) -> None:
    goal = Goal(max_drop=100, latency_ms=latency_ms)
    world = World(edge=0.9, slope=0.5, int8_loss=0.001)
    found = candidates(search(world, plan_for(goal)))
    best = choose(found, goal)
    assert best is not None
    assert best.ms <= latency_ms
    assert best.task.epochs
    exact = ((latency_ms / world.ms / world.int8_share) - world.overhead) / (1 - world.overhead)
    assert exact - 0.06 <= best.task.ratio <= exact


def test_ratios_whose_macs_cannot_matter_are_not_made() -> None:
    world = World()
    tasks = measured(search(world, plan_for(Goal(max_drop=100, latency_ms=1.2))))[1:]
    assert tasks
    assert max(task.ratio for task in tasks) < 0.2 / 0.8


def test_a_size_is_kept() -> None:
    goal = Goal(max_drop=100, megabytes=1.0)
    best = choose(candidates(search(World(edge=0.9, slope=0.5), plan_for(goal))), goal)
    assert best is not None
    assert best.precision == INT8
    assert 0.36 <= best.task.ratio <= 0.4


def test_what_fits_as_it_is_needs_no_pruning() -> None:
    goal = Goal(max_drop=0.5, latency_ms=20.0)
    records = search(World(), plan_for(goal))
    assert measured(records) == [PARENT]
    assert choose(candidates(records), goal) == parent_of(candidates(records))


def test_importances_are_ranked_once_all_of_them_and_then_the_best_two() -> None:
    records = search(World(), plan_for(Goal()))
    ranked: dict[float, list[str]] = {}
    for record in records:
        if record.task.kind == "rank":
            ranked.setdefault(record.task.ratio, []).append(record.task.importance)
    first, *others = ranked.values()
    assert first == ["l2", "fpgm", "taylor", "random"]
    assert others
    assert all(names == ["fpgm", "l2"] for names in others)


def test_what_keeps_the_accuracy_by_itself_is_not_recovered() -> None:
    records = search(World(fragile=0.0, edge=0.2), plan_for(Goal()))
    first = next(record.task for record in records if record.task.importance and record.task.kind == "measure")
    assert (first.ratio, first.epochs) == (0.5, 0)
    assert not any(task.epochs for task in measured(records) if task.ratio == 0.5)


def test_without_recovery_nothing_is_trained() -> None:
    records = search(World(), plan_for(Goal(), epochs=0))
    assert not any(task.epochs for task in measured(records))
    best = choose(candidates(records), Goal())
    assert best is not None
    assert best.task.ratio == pytest.approx(0.5, abs=0.03)


def test_a_network_that_cannot_be_pruned_is_quantized_and_not_tried_again() -> None:
    records = search(World(prunable=False), plan_for(Goal()))
    assert [record.task.kind for record in records] == ["measure", "rank"]
    best = choose(candidates(records), Goal())
    assert best is not None
    assert (best.task, best.precision) == (PARENT, INT8)


def test_a_ratio_out_of_reach_is_an_end_of_the_bisection() -> None:
    best = choose(candidates(search(World(floor=0.55), plan_for(Goal()))), Goal())
    assert best is not None
    assert 0.55 <= best.task.ratio <= 0.6


def test_time_left_goes_to_the_other_importance_longer_recoveries_and_the_floor() -> None:
    world = World(edge=0.4)
    plan = Plan(goal=Goal(), importances=IMPORTANCES, epochs=2, most_epochs=9)
    tasks = measured(search(world, plan))
    assert {task.importance for task in tasks} == {"", "fpgm", "l2", "random"}
    assert {task.epochs for task in tasks} == {0, 2, 4, 8}
    best = choose(candidates(search(world, plan)), Goal())
    assert best is not None
    assert tasks[-1] == Task(kind="measure", ratio=best.task.ratio, importance="random", epochs=best.task.epochs)


def test_longer_recovery_reopens_a_ratio_that_failed() -> None:
    world, goal = World(edge=0.4), Goal()
    records = search(world, plan_for(goal, epochs=1))
    failed = [record.task for record in records if record.task.epochs == 1 and record.task.ratio < 0.4]
    assert failed
    more = propose(records, plan_for(goal, epochs=5))
    assert more is not None
    assert more.epochs == 5
    assert more.ratio in {task.ratio for task in failed}


@given(worlds, plans)
def test_what_is_chosen_keeps_the_goal(world: World, plan: Plan) -> None:
    found = candidates(search(world, plan))
    best = choose(found, plan.goal)
    if best is None:
        return
    assert drop(best, parent_of(found)) <= plan.goal.max_drop + 1e-6
    assert plan.goal.latency_ms is None or best.ms <= plan.goal.latency_ms
    assert plan.goal.megabytes is None or best.megabytes <= plan.goal.megabytes
