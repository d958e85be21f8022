import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.observe.trace import continue_trace
from serve.protocols.http import request_id

# The example of https://www.w3.org/TR/trace-context-1/, section 3.2.3.
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01".encode()

lower_hex = st.text("0123456789abcdef", min_size=1)


def hexadecimal(digits: int):
    return st.text("0123456789abcdef", min_size=digits, max_size=digits)


def _parent(trace) -> str:
    return dict(trace.headers)[b"traceparent"].decode()


def _state(sent: bytes) -> bytes | None:
    return dict(continue_trace({b"traceparent": SAMPLED, b"tracestate": sent}).headers).get(b"tracestate")


def test_a_trace_goes_on_with_a_new_span():
    state = b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
    trace = continue_trace({b"traceparent": SAMPLED, b"tracestate": state})
    assert trace.trace_id == TRACE
    assert len(trace.span_id) == 16 and trace.span_id not in (PARENT, "0" * 16)
    parent = f"00-{TRACE}-{trace.span_id}-01".encode()
    assert trace.headers == ((b"traceparent", parent), (b"tracestate", state))


def test_no_trace_without_the_header_and_no_state_without_a_trace():
    assert continue_trace({}) is None
    assert continue_trace({b"tracestate": b"a=b"}) is None
    assert [name for name, _ in continue_trace({b"traceparent": SAMPLED}).headers] == [b"traceparent"]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "empty"),
        (f"00-{TRACE}-{PARENT}".encode(), "no flags"),
        (f"00-{TRACE}-{PARENT}-1".encode(), "flags of one digit"),
        (f"00-{TRACE}-{PARENT}-0g".encode(), "no hexadecimal digit"),
        (f"00-{TRACE.upper()}-{PARENT}-01".encode(), "upper case"),
        (f"00-{'0' * 32}-{PARENT}-01".encode(), "trace-id of zeros"),
        (f"00-{TRACE}-{'0' * 16}-01".encode(), "parent-id of zeros"),
        (f"00-{TRACE}-{PARENT}-01-".encode(), "version 00 with more"),
        (f"00-{TRACE}-{PARENT}-01-what".encode(), "version 00 with more"),
        (f"ff-{TRACE}-{PARENT}-01".encode(), "version ff"),
        (f"01-{TRACE}-{PARENT}-01what".encode(), "a later version with more, but without a dash"),
        (f"0-{TRACE}-{PARENT}-01".encode(), "version of one digit"),
        (f"00-{TRACE[:-1]}-{PARENT}-01".encode(), "short trace-id"),
        (f"00_{TRACE}_{PARENT}_01".encode(), "other separators"),
        (SAMPLED + b"," + SAMPLED, "two headers in one"),
    ],
)
def test_an_invalid_traceparent_is_ignored(sent, why):
    assert continue_trace({b"traceparent": sent, b"tracestate": b"a=b"}) is None, why


@pytest.mark.parametrize("sent", [f"01-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-09-what-the-future-brings"])
def test_a_later_version_is_read_as_far_as_it_is_known_and_answered_in_ours(sent):
    trace = continue_trace({b"traceparent": sent.encode()})
    assert _parent(trace) == f"00-{TRACE}-{trace.span_id}-01"


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("ff", True)])
def test_only_the_flag_sampled_is_kept(flags, sampled):
    trace = continue_trace({b"traceparent": f"00-{TRACE}-{PARENT}-{flags}".encode()})
    assert _parent(trace).endswith("-01" if sampled else "-00")


@given(hexadecimal(32), hexadecimal(16), hexadecimal(2))
def test_every_well_formed_traceparent_is_read(trace_id, parent_id, flags):
    trace = continue_trace({b"traceparent": f"00-{trace_id}-{parent_id}-{flags}".encode()})
    if set(trace_id) == {"0"} or set(parent_id) == {"0"}:
        assert trace is None
    else:
        assert trace.trace_id == trace_id
        child = continue_trace(dict(trace.headers))
        assert (child.trace_id, _parent(child)[-2:]) == (trace_id, _parent(trace)[-2:])


@given(st.binary(max_size=80) | lower_hex.map(str.encode), st.binary(max_size=700))
def test_whatever_is_sent_the_headers_can_be_sent_on(traceparent, tracestate):
    assert continue_trace({b"traceparent": traceparent, b"tracestate": tracestate}) is None or traceparent[2:3] == b"-"
    for name, value in continue_trace({b"traceparent": SAMPLED, b"tracestate": tracestate}).headers:
        assert len(value) <= 8192, name
        assert all(byte == 9 or 32 <= byte < 127 for byte in value), name


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (b"a=1,b=2", b"a=1,b=2"),
        (b" a=1 ,, b=2\t", b"a=1,b=2"),
        (b"a=1,a=2", None),
        (b"A=1", None),
        (b"a=\xff", None),
        (b",".join(b"k%d=1" % number for number in range(32)), b",".join(b"k%d=1" % number for number in range(32))),
        (b",".join(b"k%d=1" % number for number in range(33)), None),
        (b",".join(b"k%d=" % number + b"x" * 256 for number in range(32)), None),
    ],
)
def test_a_tracestate_that_is_not_valid_or_too_long_is_dropped(sent, passed_on, caplog):
    assert _state(sent) == passed_on
    assert not caplog.records


@pytest.mark.parametrize("sent", [b"7", b"Root=1-67891233-abcdef012345678912345678", b"a" * 128, b"x:y/z+~.@_"])
def test_a_sane_request_id_is_kept(sent):
    assert request_id({b"x-request-id": sent}) == sent.decode()


@pytest.mark.parametrize(
    "sent", [b"", b"a" * 129, b"a b", b"a\nb", b"a\n", b'"', b"<i>", b"\xff", "ü".encode(), b"a;b"]
)
def test_another_is_replaced_by_a_drawn_one(sent):
    drawn = request_id({b"x-request-id": sent})
    assert len(drawn) == 24 and int(drawn, 16) >= 0
    assert drawn != request_id({b"x-request-id": sent})


@given(st.binary(max_size=200))
def test_a_request_id_is_always_sane(sent):
    drawn = request_id({b"x-request-id": sent})
    assert 1 <= len(drawn) <= 128 and drawn.isascii() and drawn.isprintable() and " " not in drawn


def _ids(queue):
    queue.put([request_id({}) for _ in range(100)])


def test_ids_differ_between_forked_processes():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=_ids, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    drawn = [identifier for _ in children for identifier in queue.get()] + [request_id({}) for _ in range(100)]
    for child in children:
        child.join()
    assert len(set(drawn)) == 300


def test_span_ids_differ():
    assert len({continue_trace({b"traceparent": SAMPLED}).span_id for _ in range(100)}) == 100
