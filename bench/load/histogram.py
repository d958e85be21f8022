"""Latencies in a histogram of fixed size, however long a run is, with 0.1 % of precision.

HdrHistogram (https://hdrhistogram.org), by its Python package; encoded, it is the text of its format V2, which its
other tools read too.
"""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

__all__ = ["Latencies"]

_LOWEST_US = 1
_HIGHEST_US = 60_000_000
_DIGITS = 3
_US = 1e3


class Latencies:
    """Latencies from 1 us to 60 s; what is outside counts as the nearer end."""

    def __init__(self, encoded: str | None = None) -> None:
        """Empty, or what :meth:`encode` made."""
        self._histogram = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)
        if encoded is not None:
            self._histogram.decode_and_add(encoded.encode("ascii"))

    def __len__(self) -> int:
        """How many latencies."""
        return int(self._histogram.get_total_count())

    def append(self, milliseconds: float) -> None:
        """Count one."""
        self._histogram.record_value(min(max(round(milliseconds * _US), _LOWEST_US), _HIGHEST_US))

    def merge(self, other: Latencies) -> None:
        """Count all of another one too."""
        self._histogram.add(other._histogram)

    def percentile(self, percent: float) -> float:
        """The latency in milliseconds that so many percent do not exceed; 0.0 where there are none."""
        return float(self._histogram.get_value_at_percentile(percent)) / _US

    @property
    def highest(self) -> float:
        """In milliseconds; 0.0 where there are none."""
        return float(self._histogram.get_max_value()) / _US if len(self) else 0.0

    def encode(self) -> str:
        """The histogram as text (base64, compressed)."""
        return bytes(self._histogram.encode()).decode("ascii")
