"""The search for the highest rate, without a server."""

import pytest

from bench.load.search import Step, search


def knee(limit, *, fails=(), seen=None):
    """A trial that holds up to a rate, but for the runs whose numbers are in `fails`."""

    def trial(rate, number, confirming):
        if seen is not None:
            seen.append((round(rate, 3), number, confirming))
        return Step(rate=rate, holds=rate <= limit and number not in fails, p99_ms=rate, confirming=confirming)

    return trial


@pytest.mark.parametrize("limit", [7.0, 47.0, 80.0, 99.9])
def test_the_rate_is_found_to_a_hundredth_of_the_highest(limit):
    found = search(knee(limit), highest=100.0)
    assert limit - 100 / 2**7 <= found.best.rate <= limit
    assert found.best is found.steps[-1]
    assert [step.confirming for step in found.steps] == [False] * (len(found.steps) - 1) + [True]


def test_one_pause_refutes_no_rate():
    seen = []
    calm = search(knee(60.0), highest=100.0)
    noisy = search(knee(60.0, fails=(0,), seen=seen), highest=100.0)
    assert noisy.best.rate == calm.best.rate
    assert seen[:3] == [(50.0, 0, False), (50.0, 1, False), (75.0, 2, False)]
    assert [number for _, number, _ in seen] == list(range(len(seen)))


def test_a_confirming_run_that_fails_lowers_the_rate():
    count = len(search(knee(60.0), highest=100.0).steps)
    found = search(knee(60.0, fails=(count - 1, count)), highest=100.0)
    first, second, third = found.steps[-3:]
    assert (second.rate, third.rate) == (pytest.approx(0.95 * first.rate), pytest.approx(0.9 * first.rate))
    assert found.best is third


def test_no_rate_at_all():
    found = search(knee(0.1), highest=100.0)
    assert found.best is None
    assert [step.rate for step in found.steps] == [50.0, 50.0, 25.0, 25.0, 12.5, 12.5, 6.25, 6.25]
    assert not any(step.confirming for step in found.steps)
    never = search(lambda rate, number, confirming: Step(rate=rate, holds=not confirming, p99_ms=1.0), highest=10.0)
    assert never.best is None
