"""Counting in plain memory, handed on to Prometheus' files in bulk.

prometheus_client writes every single observation to a memory-mapped file, with a check of the process id, about 2
microseconds each; a request has ten. Here a request costs additions, and what has been added is written a few times a
second, however many requests there were. A worker that is killed loses what it had not written.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Histogram

__all__ = ["CounterTally", "HistogramTally"]


class CounterTally:
    """What one counter has to be increased by."""

    __slots__ = ("_child", "count")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self.count = 0

    def flush(self) -> None:
        """Increase the counter."""
        if self.count:
            count, self.count = self.count, 0
            self._child.inc(count)


class HistogramTally:
    """What one histogram has not seen yet."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        """`bounds`: the buckets' upper bounds, without the infinite one."""
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Let the histogram see the values.

        Its public method takes one value at a time; what is inside, a sum and a counter per bucket, has been the same
        since prometheus_client 0.0.19, and a test compares both ways.
        """
        if not any(self._counts):
            return
        counts, self._counts = self._counts, [0] * len(self._counts)
        total, self._sum = self._sum, 0.0
        self._child._sum.inc(total)
        for bucket, count in zip(self._child._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
