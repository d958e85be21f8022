from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from serve.observe.tally import CounterTally, HistogramTally

BOUNDS = (0.125, 0.25, 1.0, 10.0)  # sums of which are exact in any order


def text(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.lists(st.one_of(st.sampled_from(BOUNDS), st.integers(0, 20).map(float)), max_size=8), max_size=4))
def test_a_histogram_written_in_bulk_is_the_histogram_written_one_by_one(batches):
    bulk, single = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally(Histogram("h", "h", buckets=BOUNDS, registry=bulk), BOUNDS)
    histogram = Histogram("h", "h", buckets=BOUNDS, registry=single)
    for batch in batches:
        for value in batch:
            tally.observe(value)
            histogram.observe(value)
        tally.flush()
        assert text(bulk) == text(single)


def test_a_counter_gets_what_was_counted_once():
    registry = CollectorRegistry()
    tally = CounterTally(Counter("c", "c", registry=registry))
    tally.count += 3
    tally.flush()
    tally.flush()
    assert registry.get_sample_value("c_total") == 3
