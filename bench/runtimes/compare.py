"""Speed, size and answers of artefacts beside what else there is to pick: torch, ONNX Runtime's and NNCF's defaults.

Every variant runs in processes of its own, which take turns within a family: an artefact and what was pruned from it.
Everything runs on the CPU, with the same number of threads.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.rows import stamp
from bench.runtimes.baselines import AGAIN, DEFAULTS, INSTALL, PEERS, REFERENCE
from bench.runtimes.families import Network
from bench.runtimes.measurements import measured, with_ratios
from bench.runtimes.measuring_process import PACE_SECONDS, Job
from zoo.artefact import onnx_file as graph
from zoo.artefact.clock import alternate
from zoo.artefact.environment import load_average
from zoo.artefact.latency import LatencyConfig
from zoo.base.errors import PocketzooError, UsageError, unknown_name
from zoo.base.files import CHECKPOINT, GRAPH, sha256_file
from zoo.base.machine import cores
from zoo.base.progress import note, track
from zoo.base.statistics.paired import Logits, agreement
from zoo.data.dataset import Sample
from zoo.data.image_set import ImageSet
from zoo.networks import checkpoint
from zoo.training.evaluate import accuracy

__all__ = ["ALL", "CompareConfig", "compare"]

_PREPARED = ("bytes", "convert_seconds", "setup_seconds", "engine", "hint")

TRUTH = "pocketzoo"
"""The exported graph in zoo.artefact.predictor: what the other answers are held against."""

ALL = "all"
"""Stands for every peer that is installed."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to measure, and how."""

    peers: tuple[str, ...] = ()
    """Names in bench.runtimes.baselines.PEERS, or `all` that are installed; default: those but torch-compile.
    ONNX Runtime and ours are always measured."""
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        known = [name for name, peer in PEERS.items() if not peer.ours and name != AGAIN]
        for name in self.peers:
            if name == ALL:
                continue
            if name not in known:
                raise unknown_name("peer", name, [*known, ALL])
            if absent := _absent(name):
                raise UsageError(f"--peers {name}: {absent} is not installed; {INSTALL}")
            if reason := PEERS[name].obstacle():
                raise UsageError(f"--peers {name}: {reason}")

    @property
    def chosen(self) -> list[str]:
        """Names of the peers to measure, then ours."""
        always, absent = (REFERENCE, AGAIN, *(name for name, peer in PEERS.items() if peer.ours)), self.absent
        return [name for name in PEERS if name in always or (name in self._asked and name not in absent)]

    @property
    def absent(self) -> dict[str, str]:
        """Peers that would be measured, were they installed: what each lacks, and the command that installs it."""
        missing = {name: _absent(name) for name in self._asked}
        lacking = {name: f"{package} is not installed; {INSTALL}" for name, package in missing.items() if package}
        return lacking | {name: why for name in self._asked if name not in lacking and (why := PEERS[name].obstacle())}

    @property
    def _asked(self) -> tuple[str, ...]:
        return tuple(PEERS) if ALL in self.peers else self.peers or DEFAULTS


def compare(
    family: Sequence[Network],
    config: CompareConfig,
    *,
    calibration: Sequence[Sample] = (),
    pictures: ImageSet | None = None,
) -> list[dict[str, Any]]:
    """One complete row per network and variant that it can be run as; what is left out is said on standard error.

    Args:
        family: as bench.runtimes.families makes it.
        config: what and how.
        calibration: images for the peers that quantize.
        pictures: measure the accuracy, or without labels the agreement with the exported graph, on these.

    Raises:
        PocketzooError: a measuring process failed.
    """
    with (
        _folder_of(calibration) as images,
        _folder_of(pictures.samples if pictures else ()) as questions,
        tempfile.TemporaryDirectory(prefix="pocketzoo-peers-") as scratch,
    ):
        jobs = _jobs(family, config, Path(scratch), images if calibration else None)
        prepared = _prepare(jobs)
        jobs = {key: jobs[key] for key in prepared}
        # Before the first round: a file that changes meanwhile is not the one that was measured.
        known = {
            key: _what(network, peer) for network in family for peer in PEERS if (key := _key(network, peer)) in jobs
        }
        load = load_average()
        turns = _times(jobs, config.latency.rounds)
        logits = _answers(jobs, questions) if pictures else {}
    common: dict[str, Any] = {
        "family": family[0].name,
        "batch": config.latency.batch,
        "threads": config.latency.threads or cores(),
        "rounds": config.latency.rounds,
        "warmup": config.latency.warmup,
        "pace_seconds": PACE_SECONDS,
        "load_average": load,
    } | stamp("torch", "timm", "openvino", "nncf")
    common["environment"] = common["environment"] | {"provider": "CPUExecutionProvider"}
    rows = [
        common
        | known[key]
        | measured(turns[key])
        | {name: prepared[key][name] for name in _PREPARED}
        | {"difference": _difference(prepared[key], prepared[_key(network, TRUTH)])}
        | _accuracy(network, peer, logits, pictures)
        for network in family
        for peer in PEERS
        if (key := _key(network, peer)) in prepared
    ]
    return with_ratios(rows, family[0].name)


def _absent(peer: str) -> str | None:
    """The first package that a peer lacks."""
    return next((name for name in PEERS[peer].needs if importlib.util.find_spec(name) is None), None)


def _key(network: Network, peer: str) -> str:
    return f"{network.folder} {peer}"


def _jobs(family: Sequence[Network], config: CompareConfig, scratch: Path, images: Path | None) -> dict[str, Job]:
    """What can be run, by network and peer."""
    jobs = {}
    for number, network in enumerate(family):
        for name in config.chosen:
            if reason := _obstacle(network, name, images):
                # That an artefact was not quantized is no news.
                if not PEERS[name].ours or (network.folder / PEERS[name].reads).is_file():
                    note(f"{network.name}: {name} is left out: {reason}")
                continue
            jobs[_key(network, name)] = Job(
                action="",
                peer=name,
                folder=str(network.folder),
                scratch=str(scratch / str(number)),
                pictures=str(images) if images else "",
                batch=config.latency.batch,
                threads=config.latency.threads or cores(),
                seconds=config.latency.seconds,
                warmup=config.latency.warmup,
                shape=network.card.use.input.shape,
            )
    return jobs


def _obstacle(network: Network, name: str, images: Path | None) -> str | None:
    """Why a peer cannot run a network."""
    peer, path = PEERS[name], network.folder / PEERS[name].reads
    if not path.is_file():
        return f"there is no {path}"
    if peer.reads == CHECKPOINT and checkpoint.read_card(path).lineage != network.card.lineage[:-1]:
        return f"{path} is not what {GRAPH} was exported from; export it again"
    if peer.reads not in (CHECKPOINT, GRAPH):
        made_from = graph.read_card(path).lineage[-1].parent
        if made_from != sha256_file(network.folder / GRAPH):
            return f"{path} was not made from the {GRAPH} beside it; make it again"
    if peer.calibrated and images is None:
        return "there are no images to calibrate it with; add --calibrate FOLDER"
    return None


def _command(job: Job, action: str, **changes: Any) -> list[str]:
    values = dataclasses.asdict(dataclasses.replace(job, action=action, **changes))
    return ["-m", "bench.runtimes.measuring_process", json.dumps(values)]


def _prepare(jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """What each process answered; a peer that cannot convert or run a network is left out."""
    found = {}
    for key, job in track(jobs.items(), total=len(jobs), description="Converting"):
        Path(job.scratch).mkdir(parents=True, exist_ok=True)
        try:
            for _, _, answer in alternate({key: _command(job, "prepare")}, 1):
                found[key] = answer
        except PocketzooError as error:
            if PEERS[job.peer].ours or job.peer == REFERENCE:
                raise
            note(f"{key} is left out: {error}")
    return found


def _times(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each process measured, by round; the processes take turns."""
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in jobs}
    turns = alternate({key: _command(job, "time") for key, job in jobs.items()}, rounds)
    for key, _, answer in track(turns, total=len(jobs) * rounds, description="Measuring"):
        found[key].append(answer)
    return found


def _answers(jobs: Mapping[str, Job], questions: Path) -> dict[str, Logits]:
    commands = {key: _command(job, "answer", pictures=str(questions)) for key, job in jobs.items()}
    turns = track(alternate(commands, 1), total=len(commands), description="Answering")
    return {key: np.load(answer["answers"]) for key, _, answer in turns}


@contextmanager
def _folder_of(samples: Sequence[Sample]) -> Iterator[Path]:
    """The encoded images as files in their order."""
    with tempfile.TemporaryDirectory(prefix="pocketzoo-pictures-") as name:
        for index, sample in enumerate(samples):
            (Path(name) / f"{index:08d}").write_bytes(sample.read())
        yield Path(name)


def _what(network: Network, name: str) -> dict[str, Any]:
    path, inform = network.folder / PEERS[name].reads, network.card.inform
    return {
        "artefact": network.name,
        "form": network.form,
        "file": path.name,
        "digest": sha256_file(path),
        "graph": None if path.name == CHECKPOINT else graph.read_card(path).inform.graph,
        "variant": name,
        "precision": PEERS[name].precision,
        "weights": "trained" if _trained(network) else "random",
        "macs": inform.macs,
        "parameters": inform.parameters,
    }


def _trained(network: Network) -> bool:
    """Whether its weights are of anything but a generator of random numbers."""
    return network.card.inform.source != "random" or any(entry.stage == "train" for entry in network.card.lineage)


def _difference(found: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """The largest difference from the exported graph's logits for the same image."""
    return float(f"{np.abs(np.subtract(found['logits'], reference['logits'])).max():.3g}")


def _accuracy(network: Network, name: str, logits: Mapping[str, Logits], pictures: ImageSet | None) -> dict[str, Any]:
    """Measured here, or of our own files what their cards say of validation data; nulls where neither is known."""
    row: dict[str, Any] = dict.fromkeys(("dataset", "split", "pictures", "top1", "low", "high", "agreement"))
    if pictures is not None:
        row |= {"dataset": pictures.name, "split": pictures.split or None, "pictures": len(pictures.samples)}
        answers = logits[_key(network, name)]
        row["agreement"] = agreement(logits[_key(network, TRUTH)], answers)
        labels = pictures.truth(network.card.use.labels, where=network.name)
        metrics = None
        if labels is not None:
            metrics = accuracy(answers, labels, dataset=pictures.name, split=pictures.split)
    else:
        card = graph.read_card(network.folder / PEERS[name].reads) if PEERS[name].ours else None
        metrics = card.metrics("validation") if card else None
        if metrics:
            row |= {"dataset": metrics.dataset, "split": metrics.split, "pictures": metrics.n}
    return row | ({"top1": metrics.top1, "low": metrics.low, "high": metrics.high} if metrics else {})
