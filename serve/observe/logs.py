"""One line per request, and one per event of the server, to standard output.

Lines are written by one `write` of at most MAX_LINE bytes each, which Linux does not mix with those of other workers
(pipe(7): PIPE_BUF). Text of clients is escaped, so that nobody can forge a line. Nothing here fails a request or waits
for a reader: a line that cannot be written (to a full pipe, to a full disk, to a closed output) is lost, and the next
one that can be is preceded by one that says how many were. The exception are two workers that write to the last free
page of a pipe at the same moment: the second waits until the reader has read.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from serve.protocols.http import Call
from serve.settings import Settings

__all__ = ["MAX_LINE", "Log"]

MAX_LINE = 4096
"""Bytes of one line, with its end: PIPE_BUF of Linux."""

_MOST = 64
"""Characters of one name: even where each takes the twelve bytes of an escaped surrogate pair, a line has room."""
_MOST_METHOD = 16

_Fields = dict[str, Any]

_fast = msgspec.json.Encoder().encode
_escaping = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


def _json(value: object) -> str:
    """ASCII only: some readers take U+0085 and U+2028 for the end of a line."""
    with contextlib.suppress(UnicodeError):
        return _fast(value).decode("ascii")
    return _escaping(value)


class Log:
    """Writes lines in the form that POCKETZOO_LOG names; with `off` requests leave none, and events leave text."""

    def __init__(self, settings: Settings, *, descriptor: int = 1) -> None:
        """`descriptor`: the open file to write to; where there is none, nothing is ever written."""
        self._requests = settings.log != "off"
        self._format: Callable[[_Fields], str] = _json if settings.log == "json" else _text
        self._output = _Output(descriptor)
        self._second = 0
        self._prefix = ""

    def request(self, call: Call, *, route: str, status: int, error: str | None = None) -> None:
        """One line about an answered request: level `error` from status 500 on, `warning` from 400 on, else `info`.

        Args:
            call: the request; its `model`, `version`, `key`, `trace` and stages are left out where there are none.
            route: the template of the route, not the path that the client sent; "" if there was none.
            status: of the answer.
            error: the sentence that the client got.
        """
        if not self._requests:
            return
        fields: _Fields = {"time": self._now(), "level": _level(status), **_of_call(call), "route": route}
        fields["status"] = status
        if call.model is not None:
            fields["model"] = call.model[:_MOST]
        if call.version is not None:
            fields["version"] = call.version[:_MOST]
        if call.key is not None:
            fields["key"] = call.key[:_MOST]
        if call.images:
            fields["images"] = call.images
        if (length := call.headers.get(b"content-length")) is not None and len(length) < _MOST_METHOD:
            fields["bytes_in"] = call.content_length
        milliseconds = {stage: round(value, 3) for stage, value in call.stages.items()}
        milliseconds["total"] = round(call.elapsed(), 3)
        fields["milliseconds"] = milliseconds
        if error is not None:
            fields["error"] = error
        self._write(fields, "error")

    def event(self, kind: str, model: str, detail: str = "") -> None:
        """One line about the server itself: a model that was loaded, swapped, refused, unloaded."""
        level = "warning" if kind == "refused" else "info"
        fields = {"time": self._now(), "level": level, "event": kind, "model": model[:_MOST], "detail": detail}
        self._write(fields, "detail")

    def failure(self, call: Call, error: BaseException) -> None:
        """One line about an error nobody expected, with as much of the end of its traceback as there is room for."""
        trace = "".join(traceback.format_exception(error))
        fields = {"time": self._now(), "level": "error", "event": "failure", **_of_call(call), "traceback": trace}
        self._write(fields, "traceback", keep_end=True)

    def _write(self, fields: _Fields, longest: str, *, keep_end: bool = False) -> None:
        """Write the line, of whose field `longest` as much is kept as fits."""
        if text := fields.get(longest):
            fields[longest] = text[-MAX_LINE:] if keep_end else text[:MAX_LINE]
        while len(line := self._format(fields)) >= MAX_LINE and (text := fields.get(longest)):
            cut = max(1, min(len(line) - MAX_LINE + 1, len(text) // 8))
            fields[longest] = text[cut:] if keep_end else text[:-cut]
        if self._output.lost:
            self._say_what_was_lost()
        self._output.put(line)

    def _say_what_was_lost(self) -> None:
        lost = {"time": self._now(), "level": "warning", "event": "log_lines_lost", "lines": self._output.lost}
        if self._output.put(self._format(lost)):
            self._output.lost = 0
        else:
            self._output.lost -= 1  # this line itself is none that anybody misses

    def _now(self) -> str:
        """ISO 8601, UTC, with milliseconds."""
        milliseconds = time.time_ns() // 1_000_000
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._prefix}.{rest:03d}Z"


class _Output:
    """A file descriptor that is written to only where that does not wait."""

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        """Lines that could not be written and were not yet told of."""
        self._descriptor = descriptor
        self._torn = False
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        try:
            os.fstat(descriptor)
        except OSError:
            # Its number may be given to another file soon, even to a client's connection.
            self._descriptor = -1

    def put(self, line: str) -> bool:
        """Write a line; whether that succeeded."""
        with self._lock:  # the threads that load models write, too
            return self._put(line)

    def _put(self, line: str) -> bool:
        data = f"{line}\n".encode("ascii")
        # After a line of which a full disk took a part, the next one starts on its own line.
        whole = b"\n" + data if self._torn else data
        try:
            if self._descriptor < 0 or not self._poll.poll(0):
                self.lost += 1
                return False
            written = os.write(self._descriptor, whole)
        except OSError:
            self.lost += 1
            return False
        self._torn = written < len(whole)
        self.lost += self._torn
        return not self._torn


def _level(status: int) -> str:
    return "error" if status >= 500 else "warning" if status >= 400 else "info"


def _of_call(call: Call) -> _Fields:
    fields: _Fields = {"request_id": call.request_id}
    if (trace := call.trace) is not None:
        fields["trace_id"] = trace.trace_id
        fields["span_id"] = trace.span_id
    if call.client is not None:
        fields["client"] = call.client[:_MOST]
    fields["method"] = call.method[:_MOST_METHOD]
    return fields


def _text(fields: Mapping[str, Any]) -> str:
    """`time level`, and `name=value` of the rest: in quotes and escaped as in JSON where it is not one plain word."""
    words = [fields["time"], fields["level"]]
    for name, value in fields.items():
        if name == "milliseconds":
            words += [f"{stage}_ms={number:g}" for stage, number in value.items()]
        elif name not in ("time", "level"):
            words.append(f"{name}={_word(value)}")
    return " ".join(words)


def _word(value: object) -> str:
    text = str(value)
    plain = text.isascii() and text.isprintable() and text and not any(character in text for character in ' "=\\')
    return text if plain else _json(text)
