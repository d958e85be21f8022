"""The server that `bentoml serve` starts: transport only.

The parent process checks the default model before any worker starts, so that a server that could never answer ends
with a sentence and exit code 1 instead of restarting its worker for ever. The worker loads it again and is ready then.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import bentoml
from bentoml._internal.utils.analytics.usage_stats import do_not_track
from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.answer import describe, predict
from serve.intake import Upload, read_form
from serve.repository import Repository, scan
from serve.schema import ModelsResponse, PredictResponse
from serve.settings import Settings, read_settings
from zoo.errors import ImageError, PocketzooError, UsageError

__all__ = ["Classifier", "PredictForm"]

# BentoML prints what its own loggers say, and of others only warnings.
_log = logging.getLogger("bentoml.pocketzoo")

# No telemetry, unless the user asks for it (BENTOML_DO_NOT_TRACK=False). BentoML's command line has looked at the
# variable before this module is imported, and remembers what it saw, but sends nothing before.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
do_not_track.cache_clear()


class PredictForm(bentoml.IODescriptor):  # type: ignore[misc]  # BentoML has no types
    """The form of POST /predict, as clients and the page at `/` see it."""

    images: list[Path] = Field(description="one or several image files")
    model: str | None = Field(None, description="a name of GET /models; default: the default model")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> PredictForm:
        """Leave the body unread: :meth:`Classifier.predict` reads it, with :func:`serve.intake.read_form`."""
        form: PredictForm = cls.model_construct(images=[], model=None)
        return form


async def _models(request: Request) -> Response:
    """GET /models."""
    answer: ModelsResponse = await anyio.to_thread.run_sync(describe, bentoml.get_current_service().repository)
    return JSONResponse(answer.model_dump())


def _open(settings: Settings) -> Repository:
    return Repository(scan(settings.output, threads=settings.threads), default=settings.default_model)


@bentoml.asgi_app(Starlette(routes=[Route("/models", _models)]), name="models")
@bentoml.service(workers=1)
class Classifier:
    """Image classification with every artefact of the output folder. GET /models lists them."""

    def __init__(self) -> None:
        self.settings = read_settings()
        self.repository = _open(self.settings)
        self._limiter = anyio.CapacityLimiter(self.settings.parallel)
        for served in self.repository.models.values():
            if served.error:
                _log.warning("not served: %s: %s", served.name, served.reason)
        _log.info("%d models, default: %s", len(self.repository.models), self.repository.default)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def check_default_model() -> None:
        """Let `bentoml serve` fail before it starts a worker that would fail."""
        try:
            _open(read_settings())
        except PocketzooError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from error

    @bentoml.api(input_spec=PredictForm, output_spec=PredictResponse)  # type: ignore[untyped-decorator]
    async def predict(self, ctx: bentoml.Context, **unread: Any) -> PredictResponse | Response:
        """Classify one or several images.

        Send a multipart form: `curl -F images=@cat.jpg -F images=@dog.jpg -F model=NAME http://localhost:3000/predict`.
        A request that cannot be answered gets `{"error": "a sentence"}`: 400 if it is at fault, 503 if the model is.
        """
        # `unread` is what PredictForm.from_http_request left: nothing.
        try:
            async with read_form(ctx.request, self.settings) as upload:
                return await anyio.to_thread.run_sync(self._predict, upload, limiter=self._limiter)
        except PocketzooError as error:
            ctx.response.status_code = 400 if isinstance(error, UsageError | ImageError) else 503
            return JSONResponse({"error": str(error)})

    def _predict(self, upload: Upload) -> PredictResponse:
        pictures = [(image.filename or "", image.file.read) for image in upload.images]
        return predict(
            self.repository,
            pictures,
            model=upload.model,
            top=self.settings.top,
            max_pixels=self.settings.max_pixels,
        )
