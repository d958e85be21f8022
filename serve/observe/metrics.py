"""What Prometheus may ask: requests, stages, models and drift, of all workers together.

Labels are bounded: templates of routes, names of models in the repository, numbers of statuses; never text of a client.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram

from serve.observe.drift import Follower
from serve.observe.workers import choose_storage, render
from serve.protocols.http import Call
from serve.settings import Settings
from zoo.artefact.card import Card

__all__ = ["CONTENT_TYPE", "Answering", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Media type of what :meth:`Metrics.render` gives."""

_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of times: 0.1 ms to 10 s, three per decade."""
_MOST = 1000
"""Combinations of labels of one metric; what comes later is counted together, under the labels `other`."""
_REPORT_EVERY = 25
"""Answers of a model between two looks at its drift, which take longer than counting them."""

_REASONS = {
    400: "malformed",
    401: "key",
    403: "forbidden",
    404: "unknown",
    405: "method",
    408: "slow",
    413: "too_large",
    415: "type",
    422: "unfit",
    429: "rate",
    499: "gone",
    500: "failure",
    503: "unavailable",
    504: "late",
}
"""Why a request was refused, by the status of its answer."""

_C = TypeVar("_C", Counter, Gauge, Histogram)


class Answering(Protocol):
    """What :meth:`Metrics.answered` must know of a model."""

    @property
    def name(self) -> str:
        """Its name in the repository."""

    @property
    def digest(self) -> str:
        """SHA-256 of its file: what tells its versions apart."""

    @property
    def card(self) -> Card:
        """Its card, whose `use.reference` drift is measured against."""


class Metrics:
    """The metrics of one worker, to be made when the worker starts, and once: a process has one set of files."""

    def __init__(self, settings: Settings) -> None:
        """Register every metric; of the settings `batch_size` bounds a histogram, and `workers` says where to count."""
        choose_storage(settings.workers)
        self._registry = registry = CollectorRegistry()
        self._requests = _counter("requests", "Requests answered.", registry, "route", "model", "status")
        self._request_seconds = _timed("request", "From a request's headers to its answer.", registry, "route")
        self._stage_seconds = _timed("stage", "Time of a request per stage.", registry, "stage")
        self._images = _counter("images", "Images answered.", registry, "model")
        self._refused = _counter("refused", "Requests not answered, by the reason.", registry, "reason")
        self.in_flight = _gauge("in_flight", "Requests being worked on.", registry)
        self.queued = _gauge("queued", "Requests that wait for their turn.", registry)
        self.loaded = _gauge("models_loaded", "Models in memory, in the worker with the most.", registry, "livemax")
        sizes = [2**power for power in range(max(1, math.ceil(math.log2(settings.batch_size))) + 1)]
        self.batches = Histogram("pocketzoo_batch_size", "Images of one inference.", buckets=sizes, registry=registry)
        self._events = _counter("model_events", "Changes of the models.", registry, "kind", "model")
        self._drift = _DriftGauges(registry)

    def record(self, call: Call, *, route: str, status: int, images: int) -> None:
        """Count an answered request.

        Args:
            call: the request; its `model` must be None or a name of the repository.
            route: the template of its route; "" if there was none.
            status: of the answer; from 400 on the request counts as refused.
            images: asked about; counted where the request was not refused.
        """
        model = call.model or ""
        self._requests(route, model, status).inc()
        self._request_seconds(route, model).observe(time.perf_counter() - call.started)
        for stage, milliseconds in call.stages.items():
            self._stage_seconds(stage, model).observe(milliseconds / 1e3)
        if status >= 400:
            self._refused(_REASONS.get(status, "other")).inc()
        elif images:
            self._images(model).inc(images)

    def event(self, kind: str, model: str) -> None:
        """Count a change: loaded, swapped, refused, unloaded."""
        self._events(kind, model).inc()

    def answered(self, model: Answering, probabilities: npt.NDArray[np.float32]) -> None:
        """Take in answers [B, K] for the drift of a model whose card has a reference; from the event loop only."""
        if model.card.use.reference is not None:
            classes, confidences = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
            self._drift.answered(model, zip(classes, confidences, strict=True), len(classes))

    def render(self) -> bytes:
        """The metrics of all workers in Prometheus' text format. Reads files, so not to be called in the event loop."""
        return render(self._registry)


def _children(make: Callable[..., _C]) -> Callable[..., _C]:
    """From labels to their child, without the checks that `make`, the method `labels` of a metric, always repeats."""
    known: dict[tuple[str | int, ...], _C] = {}

    def child(*values: str | int) -> _C:
        if (found := known.get(values)) is None:
            if len(known) >= _MOST:
                return make(*itertools.repeat("other", len(values)))
            found = known[values] = make(*values)
        return found

    return child


class _DriftGauges:
    """Drift per model, of the worker that answered last: each sees a fair share of the requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Callable[..., Gauge]:
            full = f"pocketzoo_drift_{name}"
            made = Gauge(full, text, ["model"], registry=registry, multiprocess_mode="livemostrecent")
            return _children(made.labels)

        self._confidence = gauge(
            "confidence", "Mean confidence of the last answers, minus the card's on validation data."
        )
        self._classes = gauge(
            "classes", "Distance (0 to 1) of the predicted classes from the card's on validation data."
        )
        self._answers = gauge("answers", "Answers that the drift is computed from.")
        self._followers: dict[str, Follower] = {}
        self._unseen: dict[str, int] = {}
        self._shown: set[str] = set()

    def answered(self, model: Answering, answers: zip[tuple[int, float]], count: int) -> None:
        name = model.name
        follower = self._followers.get(name)
        if follower is None:
            follower = self._followers[name] = Follower()
        follower.add(model.digest, model.card, answers)
        unseen = self._unseen.get(name, 0) + count
        self._unseen[name] = unseen % _REPORT_EVERY
        if unseen >= _REPORT_EVERY:
            self._show(name, follower)

    def _show(self, name: str, follower: Follower) -> None:
        drift = follower.drift()
        if drift is None and name not in self._shown:
            return
        self._shown.add(name)
        # A series cannot be taken back: after a change of versions, NaN says that there is no number yet.
        self._answers(name).set(follower.answers)
        self._confidence(name).set(math.nan if drift is None else drift.confidence)
        self._classes(name).set(math.nan if drift is None or drift.classes is None else drift.classes)


def _timed(name: str, text: str, registry: CollectorRegistry, label: str) -> Callable[..., Histogram]:
    name = f"pocketzoo_{name}_seconds"
    return _children(Histogram(name, text, [label, "model"], buckets=_SECONDS, registry=registry).labels)


def _counter(name: str, text: str, registry: CollectorRegistry, *labels: str) -> Callable[..., Counter]:
    return _children(Counter(f"pocketzoo_{name}", text, labels, registry=registry).labels)


def _gauge(name: str, text: str, registry: CollectorRegistry, mode: Literal["livesum", "livemax"] = "livesum") -> Gauge:
    gauge = Gauge(f"pocketzoo_{name}", text, registry=registry, multiprocess_mode=mode)
    gauge.set(0)  # a killed worker with the same process id may have left its number
    return gauge
