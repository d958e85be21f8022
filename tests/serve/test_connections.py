"""Half-sent headers, against a real uvicorn."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from serve.connections import Deadlines

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(0.5 if scope["path"] == "/slow" else 0)
        body = b"x" * 20_000_000 * (scope["path"] == "/large") + b"ok"
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    class Quick(Deadlines):
        seconds = 0.2
        write_seconds = 0.3

    server = uvicorn.Server(uvicorn.Config(app, http=Quick, log_level="error", lifespan="off", timeout_keep_alive=30))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def ended(connection: socket.socket) -> bool:
    """Whether the server closes the connection within five seconds, having said nothing."""
    connection.settimeout(5)
    return connection.recv(1) == b""


def answer(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    got = b""
    while not got.endswith(b"ok"):
        got += connection.recv(1000) or pytest.fail(f"closed after {got!r}")
    return got


@pytest.mark.parametrize("sent", [b"", b"POST /v1/pre", REQUEST[:-2]])
def test_a_client_that_does_not_finish_its_headers_is_cut_off(port, sent):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        assert ended(connection)


def test_the_second_request_of_a_connection_has_the_same_time_and_idling_between_two_has_none(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for pause in (0.0, 0.5):
            time.sleep(pause)
            connection.sendall(REQUEST)
            assert answer(connection).endswith(b"ok")
        connection.sendall(REQUEST[:-2])
        assert ended(connection)


def test_a_request_that_is_being_answered_has_all_the_time(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(REQUEST.replace(b"/", b"/slow", 1))
        assert answer(connection).endswith(b"ok")


def test_headers_without_end_are_cut_off_long_before_their_time(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(5)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
            for _ in range(5000):
                connection.sendall(b"x" * 4096)


@pytest.mark.parametrize("requests", [1, 40])
def test_a_client_that_does_not_read_is_cut_off(port, requests):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(REQUEST.replace(b"/", b"/large", 1) * requests)
        time.sleep(1.0)
        connection.settimeout(5)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(1 << 20):
                got += len(data)
        assert 0 < got < 20_000_000


def test_a_client_that_reads_slowly_gets_everything(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(REQUEST.replace(b"/", b"/large", 1))
        connection.settimeout(5)
        got = 0
        while got < 20_000_000:
            time.sleep(0.02)
            got += len(connection.recv(1 << 20) or pytest.fail(f"closed after {got}"))


def test_idle_connections_make_room_for_new_ones(monkeypatch, port):
    monkeypatch.setattr(Deadlines, "connections_most", 5)
    with contextlib.ExitStack() as opened:
        asking = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        asking.sendall(REQUEST.replace(b"/", b"/slow", 1))
        time.sleep(0.05)
        idle = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(12)]
        fresh = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        fresh.sendall(REQUEST)
        assert answer(fresh).endswith(b"ok")
        assert answer(asking).endswith(b"ok")
        assert len(idle) == 12
