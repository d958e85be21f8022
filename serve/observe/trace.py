"""Which request it was: request ids, and W3C Trace Context (https://www.w3.org/TR/trace-context-1/).

The server takes part in a trace that a client began: it keeps the trace's id, draws an id for its own span, and hands
both to the log and to the answer. It begins no traces and exports no spans: see :mod:`serve.observe.logs`.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["MAX_TRACESTATE", "Trace", "continue_trace", "request_id"]

MAX_TRACESTATE = 512
"""Characters of `tracestate` passed on: what everybody has to propagate at least (section 3.3.1.5)."""
_LONG_MEMBER = 128
"""Members of `tracestate` longer than this are dropped first (section 3.3.1.5)."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}").fullmatch
# Section 3.2.2: version, 16 bytes of trace-id, 8 bytes of parent-id, flags; hexadecimal digits in lower case.
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL).fullmatch
# Printable ASCII (section 3.3.1.3.2) and tabs around the commas; anything else could not be sent on as a header.
_TRACESTATE = re.compile(rb"[\t\x20-\x7e]*").fullmatch
_SAMPLED = 0x01

# Its own generator: unlike that of the random module, nobody seeds it; each process starts from the system's entropy.
_draw = random.Random()
os.register_at_fork(after_in_child=_draw.seed)


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """What logs and answers call a request: the client's X-Request-Id, else 24 drawn hexadecimal digits.

    The client's is taken where it has 1 to 128 of the characters `A-Z a-z 0-9 . _ ~ : / + = @ -`.
    """
    if (sent := headers.get(b"x-request-id")) is not None and _SANE_ID(sent):
        return sent.decode("ascii")
    return f"{_draw.getrandbits(96):024x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """This server's span in the trace of a client."""

    trace_id: str
    """32 hexadecimal digits; the same in the whole trace."""
    parent_id: str
    """16 hexadecimal digits: the client's span."""
    sampled: bool
    """Whether the client records the trace."""
    tracestate: str = ""
    """What vendors add to a trace, as it came; see :func:`continue_trace`."""
    span_id: str = field(default_factory=lambda: f"{_draw.getrandbits(64) or 1:016x}")
    """16 hexadecimal digits: the answer to this request; never all zeros."""

    @property
    def traceparent(self) -> str:
        """The header for the answer and for requests made on behalf of this one, in version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Both headers, ready to be sent; `tracestate` only where there is one."""
        parent = (b"traceparent", self.traceparent.encode("ascii"))
        return (parent, (b"tracestate", self.tracestate.encode("ascii"))) if self.tracestate else (parent,)


def continue_trace(headers: Mapping[bytes, bytes]) -> Trace | None:
    """The trace that the request belongs to; None where it has no `traceparent`, or one that is not valid.

    A version above 00 is read as far as version 00 goes (section 3.2.4). Of the flags only `sampled` is kept.
    `tracestate` is passed on as it came where it has at most MAX_TRACESTATE characters; of a longer one, members of
    more than 128 characters and then the last ones are dropped; one with other characters than printable ASCII is
    dropped as a whole, and so is any without a valid `traceparent` (section 4.3).
    """
    if (sent := headers.get(b"traceparent")) is None:
        return None
    if (found := _TRACEPARENT(sent.strip(b" \t"))) is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not trace_id.strip(b"0") or not parent_id.strip(b"0"):
        return None
    return Trace(
        trace_id=trace_id.decode("ascii"),
        parent_id=parent_id.decode("ascii"),
        sampled=bool(int(flags, 16) & _SAMPLED),
        tracestate=_tracestate(headers.get(b"tracestate", b"")),
    )


def _tracestate(sent: bytes) -> str:
    if _TRACESTATE(sent) is None:
        return ""
    if len(sent) <= MAX_TRACESTATE:
        return sent.decode("ascii")
    members = [member for member in sent.decode("ascii").split(",") if len(member.strip()) <= _LONG_MEMBER]
    while members and sum(map(len, members)) + len(members) - 1 > MAX_TRACESTATE:
        members.pop()
    return ",".join(members)
