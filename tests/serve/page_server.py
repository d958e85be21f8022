"""A server that answers as the real one does, and badly on request, for the page in a browser."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from serve.page.route import files

__all__ = ["LABELS", "PLANTS", "Received", "run_server", "stand_in"]

DIGEST = {"ants-and-bees": "69efcedb1234" + "a" * 52, "ants-and-bees-int8": "0c77d19e55aa" + "b" * 52}
KEY = "correct-horse"


class Received(list):
    """What the page sent: (path, headers, number of bytes) of each prediction."""


LABELS = ("ant", "bee", "<i>wasp</i>")
PLANTS = tuple(f"Genus_{n:04} species" for n in range(1000))


def _models(answered: set[str]) -> dict:
    def model(
        name: str,
        precision: str,
        size: int,
        top1: float | None,
        error: str | None = None,
        labels: tuple[str, ...] = LABELS,
        colour: str = "RGB",
    ) -> dict:
        accuracy = top1 and {"dataset": "hymenoptera", "split": "validation", "n": 49, "top1": top1}
        digest = _digest(name)
        return {
            "name": name,
            "file": f"{name}/model.onnx",
            "version": digest[:12],
            "digest": digest,
            "bytes": size,
            "precision": precision,
            "classes": len(labels),
            "labels": labels,
            "input": {"colour": colour, "size": [28, 32] if colour == "L" else [224, 320]},
            "accuracy": accuracy,
            "loaded": name in answered,
            "engine": "openvino" if name in answered else None,
            "engine_reason": "openvino: 1.3 times as fast as onnxruntime" if name in answered else None,
            "error": error,
        }

    models = [
        model("ants-and-bees", "float32", 13_410_288, 0.837),
        model("ants-and-bees-int8", "int8", 3_689_059, 0.878),
        model("busy", "float32", 500, None),
        model("digits", "float32", 500, None, labels=tuple("0123456789"), colour="L"),
        model("plants", "float32", 500, None, labels=PLANTS),
        model("broken", "float32", 500, None, "broken/model.onnx: not a readable ONNX file"),
    ]
    return {"default": "ants-and-bees", "models": models}


def _digest(name: str) -> str:
    return DIGEST.get(name, "f" * 64)


def _prediction(name: str) -> dict:
    unsure = name.endswith("int8")
    labels = ("ant", "bee", "<i>wasp</i>", "hornet, a large one of the genus Vespa", "hoverfly", "sixth")
    shares = (0.41, 0.38, 0.15, 0.0501, 0.0099, 0.0) if unsure else (0.98, 0.0131, 0.004, 0.0025, 0.0003, 0.0001)
    first = ("bee", "ant") if unsure else ("ant", "bee")
    ordered = [*first, *labels[2:]]
    return {
        "model": name,
        "version": _digest(name)[:12],
        "digest": _digest(name),
        "request_id": "1",
        "predictions": [
            {
                "label": ordered[0],
                "abstained": unsure,
                "probabilities": [
                    {"label": label, "probability": share} for label, share in zip(ordered, shares, strict=True)
                ],
            }
        ],
        "milliseconds": {
            "read": 0.1,
            "queue": 0.0,
            "decode": 1.8,
            "preprocess": 2.0,
            "infer": 1.1 if unsure else 2.1,
            "total": 5.2 if unsure else 6.2,
        },
    }


def stand_in(received: Received, *, locked: bool = False) -> Callable:
    """An ASGI app; `locked`: only with the key KEY."""
    page = files()
    answered: set[str] = set()

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        async def reply(
            status: int, body: bytes, media_type: bytes = b"application/json", *headers: tuple[bytes, bytes]
        ) -> None:
            start = [(b"content-type", media_type), (b"content-length", str(len(body)).encode()), *headers]
            await send({"type": "http.response.start", "status": status, "headers": start})
            await send({"type": "http.response.body", "body": body})

        async def answer(status: int, value: object, *headers: tuple[bytes, bytes]) -> None:
            await reply(status, json.dumps(value).encode(), b"application/json", *headers)

        path, headers, size, more = scope["path"], dict(scope["headers"]), 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if path in page:
            await reply(200, page[path].body, page[path].media_type, *page[path].headers)
        elif locked and headers.get(b"x-api-key") != KEY.encode():
            await answer(401, {"error": "expected an API key in the header X-API-Key; ask who runs this server"})
        elif path == "/models":
            await answer(200, _models(answered))
        else:
            received.append((path, headers, size))
            name = path.removeprefix("/v1/models/").removesuffix(":predict")
            if name == "busy":
                await answer(429, {"error": "too many requests of this key"}, (b"retry-after", b"2"))
            elif size < 100:
                await answer(422, {"error": "cannot decode the image: image file is truncated"})
            else:
                answered.add(name)
                await answer(200, _prediction(name))

    return app


@contextlib.contextmanager
def run_server(app: Callable, *, lifespan: str = "off") -> Iterator[str]:
    """Its address, without a slash at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan=lifespan, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            end = time.monotonic() + 20
            while not server.started and thread.is_alive() and time.monotonic() < end:
                time.sleep(0.01)
            if not server.started:
                raise TimeoutError("the server did not start")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
