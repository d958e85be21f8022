import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.observe.drift import ENOUGH, WINDOW, Follower, class_distance
from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Reference, Resize, Use

LABELS = ("cat", "dog", "fox")


def card(reference: Reference | None, labels=LABELS) -> Card:
    spec = Input(colour="RGB", size=(8, 8), resize=Resize(rule="stretch"), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Card(
        name="tiny",
        build=Build(architecture="tiny"),
        use=Use(labels=labels, input=spec, reference=reference),
        inform=Inform(parameters=1, macs=1, bytes=0),
        lineage=(LineageEntry(stage="train", config={}, parent=None),),
    )


EVEN = card(Reference(mean_confidence=0.9, histogram={"cat": 500, "dog": 300, "fox": 200}))


def test_answers_like_the_reference_do_not_drift():
    follower = Follower()
    rng = np.random.default_rng(0)
    classes = rng.choice(3, size=WINDOW, p=[0.5, 0.3, 0.2]).tolist()
    follower.add("v1", EVEN, zip(classes, rng.uniform(0.8, 1.0, WINDOW).tolist(), strict=True))
    drift = follower.drift()
    assert drift.answers == WINDOW
    assert drift.confidence == pytest.approx(0, abs=0.01)
    assert drift.classes < 0.02


def test_one_class_alone_and_less_confidence_do():
    follower = Follower()
    follower.add("v1", EVEN, [(2, 0.5)] * ENOUGH)
    drift = follower.drift()
    assert drift.answers == ENOUGH
    assert drift.confidence == pytest.approx(-0.4)
    # 0.8 apart; the shares of both together are 5/11, 3/11 and 3/11, so that chance explains
    # (sqrt(30) + 2 sqrt(24)) / 11 x sqrt((1/100 + 1/1000) x 2 / pi) / 2 = 0.0581 of it.
    assert drift.classes == pytest.approx((0.8 - 0.0581) / (1 - 0.0581), abs=1e-4)


def test_nothing_is_said_of_few_answers():
    follower = Follower()
    follower.add("v1", EVEN, [(0, 0.9)] * (ENOUGH - 1))
    assert (follower.answers, follower.drift()) == (ENOUGH - 1, None)
    follower.add("v1", EVEN, [(0, 0.9)])
    assert follower.drift() is not None


def test_the_window_forgets_what_is_long_ago():
    follower = Follower()
    follower.add("v1", EVEN, [(2, 0.1)] * WINDOW)
    follower.add("v1", EVEN, [(0, 0.9)] * 500 + [(1, 0.9)] * 300 + [(2, 0.9)] * 200)
    drift = follower.drift()
    assert drift.answers == WINDOW
    assert (drift.confidence, drift.classes) == (pytest.approx(0), 0.0)


def test_a_card_without_a_reference_has_no_drift():
    follower = Follower()
    follower.add("v1", card(None), [(0, 0.9)] * ENOUGH)
    assert (follower.answers, follower.drift()) == (ENOUGH, None)


def test_a_reference_without_classes_has_confidence_only():
    follower = Follower()
    follower.add("v1", card(Reference(mean_confidence=0.5, histogram={})), [(0, 0.75)] * ENOUGH)
    assert (follower.drift().confidence, follower.drift().classes) == (0.25, None)


def test_a_new_version_begins_anew():
    follower = Follower()
    follower.add("v1", EVEN, [(0, 0.9)] * ENOUGH)
    assert follower.drift() is not None
    follower.add("v2", EVEN, [(2, 0.1)])
    assert (follower.answers, follower.drift()) == (1, None)


def test_many_classes_without_drift_stay_near_zero():
    # Without the correction for chance the distance would be 0.4.
    rng = np.random.default_rng(1)
    labels, share = 1000, rng.dirichlet(np.full(1000, 2.0))
    reference, counts = rng.multinomial(50_000, share), rng.multinomial(WINDOW, share)
    plain = np.abs(counts / counts.sum() - reference / reference.sum()).sum() / 2
    assert plain > 0.3
    assert class_distance(counts, reference) < 0.05
    assert class_distance(np.eye(labels)[0] * WINDOW, reference) > 0.9


histograms = st.integers(2, 20).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 10_000), min_size=size, max_size=size).filter(any)] * 2)
)


@given(histograms)
def test_the_distance_is_between_0_and_1_and_symmetric(pair):
    one, other = pair
    assert 0 <= class_distance(one, other) <= 1 + 1e-12
    assert class_distance(one, one) == 0
    assert class_distance(one, other) == pytest.approx(class_distance(other, one), abs=1e-12)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1)), min_size=ENOUGH, max_size=1500))
def test_the_window_is_that_of_a_plain_recount(answers):
    follower = Follower()
    for answer in answers:
        follower.add("v1", EVEN, [answer])
    last = answers[-WINDOW:]
    drift = follower.drift()
    assert drift.answers == len(last)
    assert drift.confidence == pytest.approx(sum(confidence for _, confidence in last) / len(last) - 0.9, abs=1e-9)
    counts = [sum(index == label for index, _ in last) for label in range(3)]
    assert drift.classes == pytest.approx(class_distance(counts, [500, 300, 200]))
