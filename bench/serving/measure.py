"""The server under load, in ratio to the same pipeline without a server; all in one run, taking turns."""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.artefact_fields import engine_fields
from bench.load.client_process import generate
from bench.load.images import default_image
from bench.load.load_spec import Job, summary
from bench.rows import stamp
from bench.serving.endpoints import ENDPOINTS
from bench.serving.reference import Turn
from bench.serving.reference_processes import REFERENCES, References, references
from bench.serving.server import Server, serving, watching
from serve.models.folder import SUFFIXES
from zoo.artefact.card import Card
from zoo.artefact.environment import load_average
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import preprocess
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import sha256_file
from zoo.base.progress import note, track
from zoo.base.statistics.intervals import ratio

__all__ = ["Load", "ServingConfig", "alone", "measure"]

_POISSON = (0.3, 0.7)
_OVERLOAD = 3.0
_OPEN_CONNECTIONS = 512
_RECOVERED = 2.0
"""Times the service time: a request that is answered as fast shows that an overload is over."""


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """How to measure."""

    image: Path = field(default_factory=default_image)
    """A JPEG file; it is sent as it is."""
    connections: int = 8
    rounds: int = 5
    """Every way in and every reference has one turn in each."""
    seconds: float = 2.0
    """Measured time of a turn."""
    warmup: float = 0.3
    """Seconds of the same load before each turn."""
    open_seconds: float = 30.0
    """Of each Poisson load at a part of the capacity; 0: none."""
    overload_seconds: float = 60.0
    """Of the Poisson load at three times the capacity; 0: none."""
    seed: int = 0
    """Of the Poisson arrivals."""
    engine: str | None = None
    """As zoo.artefact.predictor.Predictor takes it."""

    def __post_init__(self) -> None:
        for name, low in (("connections", 1), ("rounds", 1), ("warmup", 0), ("open_seconds", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.seconds <= 0 or self.overload_seconds < 0:
            raise UsageError(f"seconds must be positive, got {min(self.seconds, self.overload_seconds)}")


@dataclass(kw_only=True)
class Load:
    """One measured load: what each turn found. `rates` in images per second, one per round."""

    way: str
    load: str
    connections: int
    seconds: float
    rates: list[float] = field(default_factory=list)
    samples_ms: list[float] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)

    def add(self, result: dict[str, Any]) -> None:
        """Take what a turn found."""
        self.rates.append(result["rate"])
        self.samples_ms += result["samples_ms"]
        for mine, found in ((self.status, result.get("status", {})), (self.errors, result.get("errors", {}))):
            for name, count in found.items():
                mine[name] = mine.get(name, 0) + count


def measure(artefact: Path, config: ServingConfig) -> list[dict[str, Any]]:
    """Start `bentoml serve` with one artefact and measure it: one complete row per load.

    Args:
        artefact: an ONNX file; it is served from a temporary folder that has nothing else.
        config: how.

    Raises:
        PocketzooError: the server or another process failed, or refused the image.
    """
    card, image = read_card(artefact), config.image.read_bytes()
    preprocess(image, card.use.input)  # a file that is no image fails here, with a sentence
    # One engine for all: server and pipelines would choose by different numbers of threads.
    fields = engine_fields(Predictor(artefact, engine=config.engine)) | {"load_average": load_average()}
    engine = fields["engine"]
    with (
        alone(artefact) as models,
        serving(models, POCKETZOO_ENGINE=engine) as server,
        references(artefact, config.image, engine) as pipelines,
    ):
        name = artefact.resolve().parent.name + SUFFIXES.get(artefact.name, "")
        requests = {key: endpoint.build(name, card, image) for key, endpoint in ENDPOINTS.items()}
        started = server.resident_mb()
        loads = _rounds(server, pipelines, requests, config)
        server_row = {"ready_seconds": server.ready_seconds, "rss_mb": started, "rss_after_mb": server.resident_mb()}
        loads[_key("v1", config.connections)].detail |= server_row
        service_ms = _service_ms(loads)
        capacity = loads[_key("v1", config.connections)].rate
        opened = list(_open_loops(server, requests["v1"], capacity, service_ms, config))
    return [row | fields for row in _rows(artefact, card, config, loads, opened, service_ms)]


@contextmanager
def alone(artefact: Path) -> Iterator[Path]:
    """A temporary folder of models that has nothing but a copy of this one."""
    with tempfile.TemporaryDirectory(prefix="pocketzoo-serving-") as name:
        folder = Path(name) / artefact.resolve().parent.name
        folder.mkdir()
        shutil.copy(artefact, folder / artefact.name)
        yield Path(name)


def _key(name: str, connections: int) -> str:
    return f"{name} {connections}"


def _rounds(server: Server, pipelines: References, requests: dict[str, str], config: ServingConfig) -> dict[str, Load]:
    """References and ways in, in turn: the neighbours of a turn suffer from the same noise."""
    loads: dict[str, Load] = {}
    inside, plan = _references(), _plan(config.connections)
    for key in plan:
        name, last = key.split()
        if key in inside:
            loads[key] = Load(way=f"in-process: {name}, {last}", load="", connections=0, seconds=0)
        else:
            title = ENDPOINTS[name].title
            loads[key] = Load(way=title, load="closed loop", connections=int(last), seconds=config.seconds)
    turns = [key for _ in range(config.rounds) for key in plan]
    for key in track(iter(turns), total=len(turns), description="Measuring the server"):
        name, last = key.split()
        if key in inside:
            turn = Turn(what=last, seconds=config.seconds, warmup=config.warmup)
            loads[key].add(pipelines.measure(name, turn))
        else:
            loads[key].add(_closed(server, requests[name], int(last), config))
            _expect_answers(loads[key], server)
    return loads


def _references() -> list[str]:
    return [f"{name} {what}" for what in ("image", "tensor") for name in (*REFERENCES, "single")]


def _plan(connections: int) -> list[str]:
    """The turns of one round: what is compared stands side by side, so that both suffer from the same noise.

    The ways in at all connections alternate with the references that use all cores, of the same input; those at one
    connection with the reference of one thread.
    """
    plan: list[str | None] = []
    for what in ("image", "tensor"):
        names = [name for name, endpoint in ENDPOINTS.items() if endpoint.reference == what]
        for inside, outside in (
            ([f"{name} {what}" for name in REFERENCES], [_key(name, connections) for name in names]),
            ([f"single {what}"], [_key(name, 1) for name in names]),
        ):
            plan += [key for pair in itertools.zip_longest(inside, outside) for key in pair]
    # One connection may be all connections, and then has one turn.
    return list(dict.fromkeys(key for key in plan if key is not None))


def _closed(server: Server, request: str, connections: int, config: ServingConfig) -> dict[str, Any]:
    job = Job(
        port=server.port,
        requests=(request,),
        connections=connections,
        seconds=config.seconds,
        warmup=config.warmup,
        samples=True,
    )
    with generate(job) as client:
        return client.result()


def _expect_answers(load: Load, server: Server) -> None:
    if load.errors or set(load.status) != {"200"}:
        raise ArtefactError(
            f"{load.way} at {load.connections} connections: expected answers only, got {load.status}, {load.errors}; "
            f"its log ends with: {server.log_end()}"
        )


def _service_ms(loads: dict[str, Load]) -> float:
    """How long one image takes in process, where nothing else runs: with one thread or all, whichever is faster."""
    return min(statistics.median(loads[key].samples_ms) for key in ("single image", "wide image"))


def _open_loops(
    server: Server, request: str, capacity: float, service_ms: float, config: ServingConfig
) -> Iterator[Load]:
    for part in (*(_POISSON if config.open_seconds else ()), *((_OVERLOAD,) if config.overload_seconds else ())):
        over = part > 1
        seconds = config.overload_seconds if over else config.open_seconds
        note(f"Poisson arrivals at {part:.0%} of {capacity:.1f} images/s for {seconds:g} s")
        job = Job(
            port=server.port,
            requests=(request,),
            connections=_OPEN_CONNECTIONS,
            rate=part * capacity,
            seconds=seconds,
            warmup=config.warmup,
            seed=config.seed,
            samples=True,
            recovered_ms=_RECOVERED * service_ms if over else None,
        )
        with watching(server) as watch, generate(job) as client:
            result = client.result()
        load = Load(way=ENDPOINTS["v1"].title, load=f"Poisson, {part:.0%}", connections=0, seconds=seconds)
        load.add(result)
        load.detail |= {
            key: result.get(key) for key in ("offered_rate", "refused_ms", "late_ms", "retry_after", "connections")
        }
        # Percentiles of answers alone would flatter a server that should have answered everything.
        load.detail |= {"recovery_seconds": result["recovery_seconds"]} if over else {"unanswered": _unanswered(load)}
        assert watch.memory is not None
        load.detail |= {"of_peak": round(load.rate / capacity, 4), "rss_mb": vars(watch.memory)}
        yield load


def _unanswered(load: Load) -> int:
    return sum(load.errors.values()) + sum(count for status, count in load.status.items() if status != "200")


def _rows(
    artefact: Path, card: Card, config: ServingConfig, loads: dict[str, Load], opened: list[Load], service_ms: float
) -> list[dict[str, Any]]:
    common = {
        "artefact": artefact.resolve().parent.name,
        "file": artefact.name,
        "digest": sha256_file(artefact),
        "graph": card.inform.graph,
        "image": {"name": config.image.name, "bytes": config.image.stat().st_size},
    } | stamp()
    best = {
        what: max((loads[f"{name} {what}"] for name in REFERENCES), key=lambda load: load.rate)
        for what in ("image", "tensor")
    }
    single = {what: _fastest_p50(loads, what) for what in ("image", "tensor")}
    rows = []
    for key, load in loads.items():
        name, last = key.split()
        what = last if last in best else ENDPOINTS[name].reference
        if load.load and load.connections == 1:
            load.detail["added_p50_ms"] = round(statistics.median(load.samples_ms) - single[what], 4)
        rows.append(common | _row(load, config, ratio(load.rates, best[what].rates).value))
    for load in opened:
        if not load.detail.get("unanswered"):
            load.detail["p99_of_service"] = round(_p(load, "p99") / service_ms, 3)
        rows.append(common | _row(load, config, None))
    return rows


def _fastest_p50(loads: dict[str, Load], what: str) -> float:
    return min(statistics.median(loads[f"{name} {what}"].samples_ms) for name in ("single", "wide"))


def _p(load: Load, name: str) -> float:
    found = summary(load.samples_ms)
    return found[name] if found else float("nan")


def _row(load: Load, config: ServingConfig, share: float | None) -> dict[str, Any]:
    return {
        "way": load.way,
        "load": load.load or "in-process",
        "connections": load.connections,
        "seconds": load.seconds or config.seconds,
        "rounds": len(load.rates),
        "round_images_per_s": [round(rate, 3) for rate in load.rates],
        "images_per_s": round(load.rate, 3),
        "ratio": None if share is None else round(share, 4),
        "n": len(load.samples_ms),
        "p50_ms": _p(load, "p50"),
        "p95_ms": _p(load, "p95"),
        "p99_ms": _p(load, "p99"),
        "status": load.status,
        "errors": load.errors,
        "detail": load.detail,
    }
