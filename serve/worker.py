"""One worker's server without its transport: models, queue, keys and metrics, and what handlers ask of them."""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.access.keys import Keys
from serve.batching import Batcher, pays
from serve.bodies import AtMost, Bodies, too_large
from serve.models.model import Model
from serve.models.repository import About, Repository
from serve.observe.logs import Log
from serve.observe.metrics import Metrics
from serve.prediction import Row, prediction_document, prepare
from serve.protocols.form import Picture
from serve.protocols.http import Call, Refused
from serve.queue import Engine, Work
from serve.settings import Settings
from zoo.artefact.predictor import softmax
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.machine import give_back_freed_memory

__all__ = ["Runtime"]

Array = npt.NDArray[np.float32]

_KEYS_EVERY_SECONDS = 1.0
"""How often the file of the keys is looked at, at most."""

_LOADERS = 4
"""Threads that wait for models to be checked, and load them one after the other."""

_TENSOR_CHUNK = 8
"""Examples of one inference; more would not be faster on a CPU, but take memory, which ONNX Runtime keeps."""


class Runtime:
    """What the handlers share. Made before the worker takes traffic, closed after its last request."""

    def __init__(self, settings: Settings) -> None:
        """Load and check the default model.

        Raises:
            PocketzooError: there is no model that can be served, or the keys cannot be read.
        """
        self.settings = settings
        self.log = Log(settings)
        self.metrics = Metrics(settings)
        self.keys = Keys(settings)
        tidy = functools.partial(give_back_freed_memory, collect=False)
        self.engine = Engine(settings, observe=self.metrics.queued.set, tidy=tidy)
        self.repository = Repository(settings, on_event=self._event, prepare=self._measure)
        # Requests that wait for a model, or for a digest, must not occupy the threads that others need.
        self._loader = ThreadPoolExecutor(_LOADERS, thread_name_prefix="loader")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="listing")
        self._batchers: weakref.WeakKeyDictionary[Model, Batcher] = weakref.WeakKeyDictionary()
        self._batch_thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self.bodies = Bodies(settings, tidy=self.engine.took_memory)
        self._loading = 0
        self._keys_seen = time.perf_counter()
        self.repository.start()

    def close(self) -> None:
        """Finish what runs and free what is held."""
        self.repository.stop()
        for pool in (self._loader, self._reader):
            pool.shutdown(cancel_futures=True)
        self._batch_thread.shutdown()
        self.engine.close()

    def _event(self, kind: str, model: str, detail: str) -> None:
        self.metrics.event(kind, model)
        self.metrics.loaded.set(self.repository.loaded)
        self.log.event(kind, model, detail)

    def authorize(self, call: Call) -> None:
        """Find out whose request it is, and count it against his rate.

        Raises:
            Refused: 401 or 429; see :class:`serve.access.keys.Keys`.
        """
        if call.started >= self._keys_seen + _KEYS_EVERY_SECONDS:
            self._keys_seen = call.started
            self.keys.reload()
        call.key = self.keys.authorize(call.headers)
        self.keys.take(call.key)

    async def model(self, call: Call, name: str | None, version: str | None = None) -> Model:
        """The model that shall answer; loaded if it is not in memory.

        Raises:
            Refused: 404 if there is none of that name or version, 503 if it cannot be served.
        """
        model = self.repository.get(name, version)
        if model is None:
            model = await self._load(call, functools.partial(self.repository.load, name, version))
        call.model, call.version = model.name, model.version
        return model

    async def describe(self) -> dict[str, Any]:
        """Every model, as :class:`serve.protocols.schema.ModelsResponse` says it."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, self.repository.describe)

    async def about(self, name: str, version: str | None) -> About:
        """What is known of a model, which is not loaded for it.

        Raises:
            Refused: as :meth:`model`.
        """
        self.repository.get(name, version)  # a wrong name need not wait for other files to be read
        return await asyncio.get_running_loop().run_in_executor(self._reader, self.repository.about, name, version)

    async def _load(self, call: Call, load: Callable[[], Model]) -> Model:
        if self._loading >= max(1, self.settings.queue):
            raise Refused(503, f"{self._loading} requests wait for models to be loaded", retry_after=1.0)
        self._loading += 1
        started = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._loader, load)
        finally:
            self._loading -= 1
            call.stages["load"] = (time.perf_counter() - started) * 1e3

    async def read(
        self, call: Call, limit: int, *, admit: bool = True, json: Callable[[], AtMost] | None = None
    ) -> bytes:
        """The request's body.

        Args:
            call: whose.
            limit: bytes that it may have.
            admit: whether to refuse it, before it is read, where it could not be computed in time.
            json: makes what looks at a document of JSON as it comes.

        Raises:
            Refused: 413 if it is larger than `limit` bytes or `json` refuses it, 503 if too many bodies are in memory
                or too much waits, 408 if it stalls, 499 if the client went away.
        """
        announced = call.content_length
        if announced is not None and announced > limit:
            raise too_large(announced, limit)
        if admit:
            self.engine.admit()
        return await self.bodies.read(call, limit, json)

    async def answer(
        self, call: Call, name: str | None, version: str | None, pictures: Sequence[Picture]
    ) -> dict[str, Any]:
        """The whole answer to a request, as `serve.protocols.schema.PredictResponse` describes it.

        Raises:
            Refused: see :meth:`model` and :meth:`classify`.
            ImageError: see :meth:`classify`.
        """
        if not pictures:
            raise UsageError("no image: expected at least one")
        model = await self.model(call, name, version)
        predictions = await self.classify(call, model, pictures)
        stages = {name: round(value, 3) for name, value in call.stages.items()}
        return {
            "model": model.name,
            "version": model.version,
            "digest": model.digest,
            "request_id": call.request_id,
            "predictions": predictions,
            "milliseconds": {"read": 0.0, **stages, "total": round(call.elapsed(), 3)},
        }

    async def classify(self, call: Call, model: Model, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """The answer to each image, as `serve.protocols.schema.ImagePrediction` describes it.

        Raises:
            Refused: 503 if the server is busy, 504 if the time is up.
            ImageError: an image cannot be decoded or is too large.
        """
        probabilities = self.probabilities(model, await self.logits_of_images(call, model, pictures))
        if probabilities is None:
            raise ArtefactError(f"the model {model.name!r} answers with numbers that are not finite; export it again")
        return [
            prediction_document(prediction, abstain=self.settings.abstain)
            for prediction in model.alone.answers(probabilities, top=self.settings.top)
        ]

    async def logits_of_images(self, call: Call, model: Model, pictures: Sequence[Picture]) -> Array:
        """Logits float32 [B, K] of image files; raises as :meth:`classify`."""
        call.images = len(pictures)
        batcher = self._batcher(model)
        works = [self._work(model, picture, at, len(pictures), batcher) for at, picture in enumerate(pictures, start=1)]
        rows = await self.engine.map(call, works)
        if batcher is not None:
            with self.engine.inside_a_batch(len(rows)):
                await asyncio.gather(*(_batched(batcher, row) for row in rows))
        for stage in ("decode", "preprocess", "infer"):
            call.stages[stage] = sum(getattr(row, stage) for row in rows) * 1e3
        return np.array([row.values for row in rows])

    def _work(self, model: Model, picture: Picture, at: int, total: int, batcher: Batcher | None) -> Work[Row]:
        def run(alone: bool) -> Row:
            row = prepare(
                picture, _place(picture, at, total), model.card.use.input, self.settings, self.engine.memory.take
            )
            if batcher is None:
                row.infer_with((model.alone if alone else model.shared).logits)
            return row

        return Work(run)

    async def logits(self, call: Call, model: Model, inputs: Array) -> Array:
        """Logits float32 [B, K] of preprocessed images float32 [B, C, H, W]."""
        call.images = len(inputs)
        start = time.perf_counter()
        if (batcher := self._batcher(model)) is not None:
            self.engine.admit(len(inputs))
            with self.engine.inside_a_batch(len(inputs)):
                found = np.stack(await asyncio.gather(*(batcher.logits(row) for row in inputs)))
        else:
            chunks = [inputs[at : at + _TENSOR_CHUNK] for at in range(0, len(inputs), _TENSOR_CHUNK)]
            found = np.concatenate(await self.engine.map(call, [_tensor_work(model, chunk) for chunk in chunks]))
        call.stages["infer"] = (time.perf_counter() - start) * 1e3 - call.stages.get("queue", 0.0)
        return found

    def probabilities(self, model: Model, logits: Array) -> Array | None:
        """Calibrated probabilities float32 [B, K], of which the drift gauges hear; None if logits are not finite."""
        if not np.isfinite(logits).all():
            return None
        found = softmax(logits, model.card.use.temperature)
        self.metrics.answered(model, found)
        return found

    def _measure(self, model: Model) -> None:
        """Find out whether batches pay; where that fails, images are computed one by one, and the log says why."""
        alone, shape = model.alone, model.card.use.input.shape
        try:
            model.batched = pays(model.shared.logits, alone.logits, shape, self.settings, gpu=alone.on_gpu)
        except Exception as error:  # ONNX Runtime's exceptions have no common public base class
            self.log.event("unbatched", model.name, f"version {model.version}: measuring batches failed: {error}")

    def _batcher(self, model: Model) -> Batcher | None:
        if not model.batched:
            return None
        if (found := self._batchers.get(model)) is None:
            found = Batcher(model.alone.logits, self.settings, thread=self._batch_thread, observe=self._batch_done)
            self._batchers[model] = found
        return found

    def _batch_done(self, images: int, seconds: float) -> None:
        self.engine.batch_took(images, seconds)
        self.metrics.batches.observe(images)


def _place(picture: Picture, at: int, total: int) -> str:
    """Where an image is in its request, for errors; "" for the only one, without a name."""
    name, _ = picture
    number = f"image {at} of {total}" if total > 1 else "image" if name else ""
    return f"{number}, {name!r:.80}" if name and total > 1 else f"{number} {name!r:.80}" if name else number


async def _batched(batcher: Batcher, row: Row) -> None:
    start = time.perf_counter()
    row.values = await batcher.logits(row.values)
    row.infer = time.perf_counter() - start


def _tensor_work(model: Model, chunk: Array) -> Work[Array]:
    return Work(lambda alone: (model.alone if alone else model.shared).logits(chunk), images=len(chunk))
