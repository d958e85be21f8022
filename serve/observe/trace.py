"""W3C Trace Context (https://www.w3.org/TR/trace-context-1/).

The server takes part in a trace that a client began: it keeps the trace's id, draws an id for its own span, and hands
both to the log and to the answer. It begins no traces and exports no spans: see :mod:`serve.observe.logs`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Trace", "continue_trace"]

_NAMES = (b"traceparent", b"tracestate")
_PROPAGATOR = TraceContextTextMapPropagator()
# It warns of every header that it drops: clients could fill the log.
logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """This server's span in the trace of a client."""

    trace_id: str
    """32 hexadecimal digits; the same in the whole trace."""
    span_id: str
    """16 hexadecimal digits: the answer to this request; never all zeros."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """`traceparent` and, where the client sent one that is valid, `tracestate`: ready for the answer."""


def continue_trace(headers: Mapping[bytes, bytes]) -> Trace | None:
    """The trace that the request belongs to; None where it has no `traceparent`, or one that is not valid.

    Of the flags only `sampled` is kept. OpenTelemetry drops a `tracestate` that is not valid, or longer than it takes.
    """
    carrier = {name.decode(): headers[name].decode("latin-1") for name in _NAMES if name in headers}
    parent = get_current_span(_PROPAGATOR.extract(carrier, Context())).get_span_context()
    if not parent.is_valid:
        return None
    ours = SpanContext(
        trace_id=parent.trace_id,
        span_id=int.from_bytes(os.urandom(8), "big") or 1,
        is_remote=False,
        trace_flags=TraceFlags(parent.trace_flags & TraceFlags.SAMPLED),
        trace_state=parent.trace_state,
    )
    sent: dict[str, str] = {}
    _PROPAGATOR.inject(sent, set_span_in_context(NonRecordingSpan(ours), Context()))
    return Trace(
        trace_id=format_trace_id(ours.trace_id),
        span_id=format_span_id(ours.span_id),
        headers=tuple((name.encode("ascii"), value.encode("ascii")) for name, value in sent.items()),
    )
