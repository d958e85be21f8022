"""The server that `bentoml serve` starts: BentoML's service around this project's way in.

The default model is checked before any worker starts, so that a server that could never answer ends with a sentence and
exit code 1 instead of restarting its worker for ever. The worker loads it and is ready then. What only the worker needs
is imported where it is needed: the supervisor, which stays as long, takes 50 MB less memory for it.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import bentoml
from pydantic import Field
from starlette.types import ASGIApp, Message

from serve.protocols.schema import PredictResponse
from serve.settings import Settings, read_settings
from zoo.base.errors import PocketzooError, UsageError

__all__ = ["Classifier"]

# No telemetry, unless the user asks for it (BENTOML_DO_NOT_TRACK=False). BentoML's command line has looked at the
# variable before this module is imported, and remembers what it saw, but sends nothing before.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
if (_usage := sys.modules.get("bentoml._internal.utils.analytics.usage_stats")) is not None:
    _usage.do_not_track.cache_clear()

# The models of a bento are beside these sources in it, wherever `bentoml serve` was called.
_SOURCES = Path(__file__).resolve().parents[1]
if (_SOURCES.parent / "bento.yaml").is_file() and not os.environ.get("POCKETZOO_OUTPUT"):
    os.environ.setdefault("POCKETZOO_MODELS", str(_SOURCES / "output"))


def _settings_or_defaults() -> Settings:
    """The settings; the defaults where they are wrong, which :meth:`Classifier.check_default_model` says."""
    try:
        return read_settings()
    except UsageError:
        return Settings()


class _Service(bentoml.Service[Any]):  # type: ignore[misc]  # BentoML has no types
    """A BentoML service whose HTTP requests pass :class:`serve.routes.Front` first."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that BentoML's worker gives to uvicorn."""
        from starlette.middleware.cors import CORSMiddleware

        from serve.connections import limit_connections
        from serve.routes import Front

        settings = _settings_or_defaults()
        limit_connections(settings.timeout_seconds)
        front = Front(super().to_asgi(is_main), lambda: bentoml.get_current_service().runtime)
        if not settings.origins:
            return front
        exposed = ("X-Request-Id", "Retry-After")
        methods, headers = ("GET", "POST"), ("*",)
        return CORSMiddleware(front, settings.origins, methods, headers, expose_headers=exposed)


# The log and the metrics of requests are the front's; what BentoML would add costs more than some networks.
@bentoml.service(
    workers=_settings_or_defaults().workers,
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    service_class=_Service,
)
class Classifier:
    """Image classification with every artefact of the models' folder. GET /models lists them."""

    def __init__(self) -> None:
        from serve.worker import Runtime

        self.runtime = Runtime(read_settings())

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def check_default_model() -> None:
        """Let `bentoml serve` fail before it starts a worker that would fail, and notice soon when one has died."""
        from bentoml._internal.utils import circus

        from serve.access.keys import Keys
        from serve.models.repository import Repository

        try:
            settings = read_settings()
            Keys(settings)
            repository = Repository(settings)
            try:
                repository.check()
            finally:
                repository.stop()
        except PocketzooError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from error
        # BentoML 1.4.39 lets its supervisor look for dead workers every ten seconds.
        arbiter = circus.Arbiter
        circus.Arbiter = lambda *found, **options: arbiter(*found, **{**options, "check_delay": 0.5})

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Finish what runs, in the time of one request: a graph that does not end must not keep the server."""
        last = threading.Timer(self.runtime.settings.timeout_seconds, os._exit, (1,))
        last.daemon = True
        last.start()
        self.runtime.close()
        last.cancel()

    @bentoml.api  # type: ignore[untyped-decorator]
    async def predict(
        self,
        images: list[Path] = Field(description="one or several image files"),  # noqa: B008
        model: str | None = Field(None, description="a name of GET /models; default: the default model"),
    ) -> PredictResponse:
        """Classify one or several images.

        Over HTTP, POST /predict is answered by `serve.routes`, in the same words; BentoML's
        clients read this signature, and tests call it.
        """
        from serve.protocols.http import Call, request_id

        call = Call(receive=_no_body, method="POST", path="/predict", headers={}, request_id=request_id({}))
        pictures = [(path.name, path.read_bytes()) for path in images]
        return PredictResponse.model_validate(await self.runtime.answer(call, model, None, pictures))


async def _no_body() -> Message:
    return {"type": "http.disconnect"}
