import contextlib
import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.observe.logs import MAX_LINE, Log
from serve.observe.trace import Trace
from serve.protocols.http import Call
from serve.settings import Settings

TIME = re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d\.\d{3}Z")

# What could end a line, a field or a terminal's line for some reader; half of a surrogate pair could not be encoded.
NASTY = 'x\r\n{"level":"info"}\x85\u2028\x1b[2K\x00\ud800\U0001f600 a=b "'


@pytest.fixture
def pipe():
    """A pipe's ends, the reading one without waiting."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def make_call(**fields) -> Call:
    async def receive():
        raise AssertionError("logs read no bodies")

    found = {
        "receive": receive,
        "method": "POST",
        "path": "/",
        "headers": {},
        "request_id": "r1",
        **fields,
    }
    return Call(**found)


def read(reader: int) -> list[str]:
    text = os.read(reader, 1 << 20)
    assert text.endswith(b"\n")
    return text.decode("ascii")[:-1].split("\n")


def test_a_request_is_one_json_line(pipe):
    reader, writer = pipe
    trace = Trace(trace_id="4" * 32, span_id="5" * 16)
    call = make_call(
        headers={b"content-length": b"1234"}, trace=trace, key="kiosk", model="vit", version="69efcedb1234", images=2
    )
    call.stages.update(read=0.12345, infer=2.0)
    Log(Settings(), descriptor=writer).request(call, route="/predict", status=200)
    (line,) = read(reader)
    found = json.loads(line)
    assert TIME.fullmatch(found.pop("time"))
    milliseconds = found.pop("milliseconds")
    assert milliseconds["total"] > 0 and {**milliseconds, "total": 0} == {"read": 0.123, "infer": 2.0, "total": 0}
    assert found == {
        "level": "info",
        "request_id": "r1",
        "trace_id": "4" * 32,
        "span_id": trace.span_id,
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "model": "vit",
        "version": "69efcedb1234",
        "key": "kiosk",
        "images": 2,
        "bytes_in": 1234,
    }


def test_what_a_request_does_not_have_is_left_out(pipe):
    reader, writer = pipe
    Log(Settings(), descriptor=writer).request(make_call(), route="", status=404, error="no such route: '/x'")
    (line,) = read(reader)
    found = json.loads(line)
    assert set(found) == {"time", "level", "request_id", "method", "route", "status", "milliseconds", "error"}
    assert (found["level"], found["route"], found["error"]) == ("warning", "", "no such route: '/x'")


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (304, "info"), (422, "warning"), (503, "error")])
def test_the_level_follows_the_status(pipe, status, level):
    reader, writer = pipe
    Log(Settings(), descriptor=writer).request(make_call(), route="/predict", status=status)
    assert json.loads(read(reader)[0])["level"] == level


def test_text_has_one_line_too(pipe):
    reader, writer = pipe
    log = Log(Settings(log="text"), descriptor=writer)
    call = make_call(model="vit")
    call.stages["infer"] = 2.0
    log.request(call, route="/predict", status=422, error='no "image"\nin it')
    (line,) = read(reader)
    time, level, rest = line.split(" ", 2)
    assert TIME.fullmatch(time) and level == "warning"
    rest = re.sub(r"total_ms=[\d.e-]+ ", "", rest)
    assert rest == (
        r'request_id=r1 method=POST route=/predict status=422 model=vit infer_ms=2 error="no \"image\"\nin it"'
    )


def test_off_silences_requests_but_no_events(pipe):
    reader, writer = pipe
    log = Log(Settings(log="off"), descriptor=writer)
    log.request(make_call(), route="/predict", status=200)
    log.event("swapped", "vit", "69efcedb1234 replaces 0123456789ab")
    (line,) = read(reader)
    assert line.endswith('info event=swapped model=vit detail="69efcedb1234 replaces 0123456789ab"')


@pytest.mark.parametrize(("kind", "level"), [("loaded", "info"), ("refused", "warning"), ("unloaded", "info")])
def test_an_event_is_a_line(pipe, kind, level):
    reader, writer = pipe
    Log(Settings(), descriptor=writer).event(kind, "vit", "why")
    found = json.loads(read(reader)[0])
    assert TIME.fullmatch(found.pop("time"))
    assert found == {"level": level, "event": kind, "model": "vit", "detail": "why"}


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_failure_keeps_the_end_of_its_traceback(pipe, form):
    reader, writer = pipe

    def deep(levels: int) -> None:
        if levels == 0:
            raise ValueError("the cause" + NASTY)
        deep(levels - 1)

    try:
        deep(50)
    except ValueError as error:
        Log(Settings(log=form), descriptor=writer).failure(make_call(), ValueError("x" * 9000))
        Log(Settings(log=form), descriptor=writer).failure(make_call(), error)
    first, second = read(reader)
    assert "the cause" in second and "deep(levels - 1)" in second
    assert len(first) > 3500
    if form == "json":
        assert json.loads(second)["level"] == "error"


texts = st.text(st.characters(codec=None), max_size=300) | st.sampled_from([NASTY, NASTY * 300, "\U0001f600" * 9000])


@settings(max_examples=60)
@given(texts, texts, texts, texts, st.sampled_from(["json", "text"]))
def test_nobody_can_forge_or_break_a_line(model, method, key, error, form):
    reader, writer = os.pipe()
    try:
        log = Log(Settings(log=form), descriptor=writer)
        trace = Trace(trace_id="4" * 32, span_id="5" * 16)
        call = make_call(
            model=model, method=method, key=key, request_id="i" * 128, version=model, trace=trace, images=32
        )
        call.stages.update(dict.fromkeys(("read", "queue", "decode", "preprocess", "infer", "encode"), 12345.6789))
        log.request(call, route="/v1/models/{model}/versions/{version}:predict", status=422, error=error)
        log.event("refused", model, error)
        log.failure(call, ValueError(error))
        written = os.read(reader, 1 << 20)
    finally:
        os.close(reader)
        os.close(writer)
    assert written.isascii()
    lines = written.decode().splitlines(keepends=True)
    assert len(lines) == 3
    for line in lines:
        assert len(line) <= MAX_LINE and line.endswith("\n") and line[:-1].isprintable()
    if form == "json":
        request, event, failure = map(json.loads, lines)
        assert _units(request["method"]) == _units(method[:16])
        assert _units(error).startswith(_units(request["error"]))
        assert (event["event"], failure["event"]) == ("refused", "failure")


def _units(text: str) -> bytes:
    """In JSON two halves of a surrogate pair are the same as the whole."""
    return text.encode("utf-16-le", "surrogatepass")


def test_a_long_sentence_is_cut_no_more_than_it_must_be(pipe):
    reader, writer = pipe
    Log(Settings(), descriptor=writer).request(make_call(), route="/predict", status=422, error="x" * 100_000)
    (line,) = read(reader)
    assert MAX_LINE - 10 <= len(line) + 1 <= MAX_LINE


def test_a_full_pipe_loses_lines_and_says_so_later(pipe):
    reader, writer = pipe
    log = Log(Settings(), descriptor=writer)
    for _ in range(1000):
        log.event("loaded", "vit", "x" * 1000)
    kept = 0
    while True:
        try:
            kept += os.read(reader, 1 << 20).count(b"\n")
        except BlockingIOError:
            break
    assert 0 < kept < 1000
    log.event("loaded", "vit", "again")
    told, again = map(json.loads, read(reader))
    assert (told["event"], told["lines"], told["level"]) == ("log_lines_lost", 1000 - kept, "warning")
    assert again["detail"] == "again"
    log.event("loaded", "vit", "and on")
    assert len(read(reader)) == 1


def test_an_output_without_a_reader_fails_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(Settings(), descriptor=writer)
    log.event("loaded", "vit")
    log.request(make_call(), route="/predict", status=200)
    os.close(writer)
    log.event("loaded", "vit")


def test_a_descriptor_that_was_closed_from_the_start_is_never_written_to():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    log = Log(Settings(), descriptor=writer)
    new_reader, new_writer = os.pipe()
    try:
        assert writer in (new_reader, new_writer)
        os.set_blocking(new_reader, False)
        log.event("loaded", "vit")
        with pytest.raises(BlockingIOError):
            os.read(new_reader, 100)
    finally:
        os.close(new_reader)
        os.close(new_writer)


def test_a_full_disk_fails_nothing():
    full = os.open("/dev/full", os.O_WRONLY)
    log = Log(Settings(), descriptor=full)
    log.request(make_call(), route="/predict", status=200)
    log.event("loaded", "vit")
    os.close(full)


def test_a_torn_line_does_not_spoil_the_next(pipe, monkeypatch):
    reader, writer = pipe
    log = Log(Settings(), descriptor=writer)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    log.event("loaded", "vit", "torn")
    monkeypatch.undo()
    log.event("loaded", "vit", "whole")
    torn, told, whole = read(reader)
    assert len(torn) == 10
    assert (json.loads(told)["lines"], json.loads(whole)["detail"]) == (1, "whole")
