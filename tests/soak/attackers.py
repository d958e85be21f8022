"""Those who want a server to be there for nobody else: each goes on until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import select
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, features

from bench.serving.server import Server
from tests.soak.artefacts import write_tiny
from tests.soak.files import png
from tests.soak.harness import answer, connect, head
from tests.soak.hostile import write_endless, write_huge

__all__ = [
    "EDGES",
    "Attack",
    "bomb_files",
    "bombs",
    "flood_requests",
    "hostile_graphs",
    "idle",
    "json_floods",
    "slow_readers",
    "stalled_uploads",
]

EDGES = (5000, 4999)
"""Just below POCKETZOO_MAX_PIXELS."""


@dataclass(kw_only=True)
class Attack:
    """One attack that is under way."""

    server: Server
    over: threading.Event
    counts: Counter[str] = field(default_factory=Counter)
    """What the attackers got."""

    def crowd(self, openings: list[bytes], *, every: float = 0.05, until: int = select.POLLIN) -> None:
        """Connections that send their opening and then neither read nor write; opened again when they are closed.

        Args:
            openings: one per connection.
            every: seconds between two looks at them.
            until: what of poll(2) ends one, beside its end: an answer, or nothing (0).
        """
        streams: dict[socket.socket, bytes] = {}
        waiting = list(openings)
        try:
            while True:
                for opening in waiting:
                    with contextlib.suppress(OSError):
                        stream = connect(self.server.port, timeout=2)
                        streams[stream] = opening
                        stream.sendall(opening)
                waiting = []
                if self.over.wait(every):
                    break
                for stream in self._ended(list(streams), until):
                    waiting.append(streams.pop(stream))
                    stream.close()
            self.counts["still open"] += len(streams)
        finally:
            for stream in streams:
                stream.close()

    def _ended(self, streams: list[socket.socket], until: int) -> list[socket.socket]:
        poll = select.poll()
        numbers = {stream.fileno(): stream for stream in streams}
        for number in numbers:
            poll.register(number, until | select.POLLHUP | select.POLLERR)
        ended = []
        for number, _ in poll.poll(0):
            stream = numbers[number]
            stream.settimeout(1)
            self.counts[answer(stream)] += 1
            ended.append(stream)
        return ended

    def repeat(self, requests: list[bytes], *, connections: int) -> None:
        """Connections that send one request after the other, each as soon as the one before is answered."""
        turn, lock = itertools.cycle(requests), threading.Lock()

        def ask() -> None:
            while not self.over.is_set():
                with lock:
                    request = next(turn)
                try:
                    with connect(self.server.port, timeout=60) as stream:
                        with contextlib.suppress(ConnectionError):
                            stream.sendall(request)
                        found = answer(stream)
                except OSError as error:
                    found = type(error).__name__
                self.counts[found] += 1

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def stalled_uploads(attack: Attack) -> None:
    """Bodies that fill the memory for bodies, all but for their last bytes, and a hundred small ones beside them."""
    large = head("/v1/predict", 19_990_001, media="image/jpeg") + bytes(19_990_000)
    filler = head("/v1/predict", 14_000_001, media="image/jpeg") + bytes(14_000_000)
    small = head("/v1/predict", 400_001, media="image/jpeg") + bytes(400_000)
    attack.crowd([large] * 6 + [filler] + [small] * 100)


def slow_readers(attack: Attack) -> None:
    """Pipelined requests for large answers that nobody reads."""
    ask = b"GET /docs.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    attack.crowd([ask * 200] * 20, until=0)


def json_floods(attack: Attack) -> None:
    """JSON of a million keys, of a million rows, nested without end."""
    attack.repeat(flood_requests(), connections=4)


@functools.cache
def flood_requests() -> list[bytes]:
    """JSON that is large, and worth nothing."""
    keys = json.dumps({f"k{number}": number for number in range(1_000_000)}).encode()
    rows = b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [%s]}]}' % b",".join(
        [b"[]"] * 2**20
    )
    deep = b'{"inputs": ' + b"[" * 2_000_000
    objects = b'{"instances": [%s]}' % b",".join([b"{}"] * 1_000_000)
    ways = [("/v2/models/working/infer", body) for body in (keys, rows, deep)]
    ways += [("/v1/models/working:predict", body) for body in (keys, deep, objects)]
    return [head(path, len(body), media="application/json") + body for path, body in ways]


def bombs(attack: Attack) -> None:
    """Small files of as many pixels as are accepted, in every format and mode."""
    files = bomb_files(EDGES).values()
    attack.repeat([head("/v1/predict", len(data), media="image/png") + data for data in files], connections=4)


@functools.cache
def bomb_files(size: tuple[int, int]) -> dict[str, bytes]:
    """Name -> an image file of one colour."""
    found = {
        f"png {bits} {channels}": png(*size, bits=bits, channels=channels) for bits in (8, 16) for channels in (1, 3)
    }
    plain = {mode: Image.new(mode, size) for mode in ("L", "P", "LA", "RGB", "RGBA", "CMYK")}
    ways: list[tuple[str, str, dict[str, object]]] = [
        ("PNG", "LA", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": 0}),
        ("GIF", "P", {}),
        ("GIF", "P", {"transparency": 0}),
        ("JPEG", "L", {}),
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("WEBP", "RGB", {"method": 0}),
        ("WEBP", "RGBA", {"method": 0}),
        ("WEBP", "RGBA", {"method": 0, "lossless": True}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {"compression": "tiff_adobe_deflate", "tiffinfo": {278: size[1]}}),
        ("TIFF", "LA", {"compression": "tiff_adobe_deflate"}),
    ]
    if features.check("avif"):
        ways += [("AVIF", "RGB", {"speed": 10}), ("AVIF", "RGBA", {"speed": 10})]
    for kind, mode, options in ways:
        stream = io.BytesIO()
        plain[mode].save(stream, kind, **options)
        found[f"{kind} {mode} {options}"] = stream.getvalue()
    deep = io.BytesIO()
    Image.fromarray(np.zeros(size[::-1], np.uint16)).save(deep, "TIFF", compression="tiff_adobe_deflate")
    return {**found, "TIFF I;16": deep.getvalue()}


def idle(attack: Attack) -> None:
    """A thousand connections that say nothing."""
    attack.crowd([b""] * 1000, every=0.2)


def hostile_graphs(attack: Attack) -> None:
    """Every second another artefact that does not end, takes all memory, lies or is torn, and requests for them."""
    models = attack.server.models
    written = []
    kinds: list[Callable[..., object]] = [write_endless, write_huge]
    for number in itertools.count():
        folder = models / f"hostile-{number % 20}"
        path = folder / "model.onnx"
        if number % 4 < 2:
            kinds[number % 2](path)
        else:
            write_tiny(path, seed=number, liar=True)
            if number % 4 == 3:
                path.write_bytes(path.read_bytes()[:900])
        written.append(folder)
        with contextlib.suppress(OSError), connect(attack.server.port, timeout=0.5) as stream:
            stream.sendall(head(f"/v1/models/{folder.name}:predict", 5) + b"hello")
            attack.counts[answer(stream)] += 1
        if attack.over.wait(1.0):
            break
    for folder in written:
        shutil.rmtree(folder, ignore_errors=True)
    time.sleep(1.0)
