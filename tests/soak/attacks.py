"""Attacks beside honest load: what those who send real photographs notice of them.

Run as `python -m tests.soak.attacks [--seconds 60] [--only NAME]`: prints a table, appends a row per attack to
output/bench/attacks.jsonl, which `pocketzoo bench publish` takes, and exits with 1 if an honest request failed, or the
slowest hundredth of them took ten times as long as without an attack.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.load.client_process import generate
from bench.load.load_spec import Job, prepare
from bench.rows import ATTACKS as ROWS
from bench.rows import append, stamp
from bench.serving import soak_tables
from bench.serving.server import Server, serving, watching
from tests.soak.artefacts import photograph, write_working
from tests.soak.attackers import (
    EDGES,
    Attack,
    bomb_files,
    bombs,
    flood_requests,
    hostile_graphs,
    idle,
    json_floods,
    slow_readers,
    stalled_uploads,
)
from zoo.base.errors import PocketzooError, UsageError, unknown_name
from zoo.base.files import output_root
from zoo.base.interrupt import requests_to_end_interrupt
from zoo.base.progress import note

__all__ = ["ATTACKS", "main", "run"]

ATTACKS: dict[str, Callable[[Attack], None]] = {
    "stalled uploads": stalled_uploads,
    "slow readers": slow_readers,
    "JSON floods": json_floods,
    "decode bombs": bombs,
    "idle connections": idle,
    "hostile graphs": hostile_graphs,
}

_MOST_TIMES = 10.0
_CONNECTIONS = 8

Row = dict[str, Any]


def _honest(server: Server, request: str, *, seconds: float, rate: float | None) -> Row:
    """What those find who send photographs: at a rate, or as fast as they are answered."""
    connections = _CONNECTIONS if rate is None else 256
    job = Job(
        port=server.port,
        requests=(request,),
        connections=connections,
        seconds=seconds,
        warmup=min(1.0, seconds / 4),
        rate=rate,
        timeout=30,
    )
    with generate(job) as client:
        return client.result(timeout=seconds + 120)


@contextlib.contextmanager
def _attacking(name: str, server: Server) -> Iterator[Attack]:
    attack = Attack(server=server, over=threading.Event())
    thread = threading.Thread(target=ATTACKS[name], args=(attack,), daemon=True)
    thread.start()
    try:
        yield attack
    finally:
        attack.over.set()
        thread.join()


def run(names: Sequence[str], *, seconds: float) -> Iterator[Row]:
    """A row for each attack, on a server with one network that takes a few milliseconds.

    Raises:
        UsageError: an unknown name.
        ArtefactError: the server did not start.
    """
    for name in names:
        if name not in ATTACKS:
            raise unknown_name("attack", name, ATTACKS)
    request = prepare("POST", "/v1/predict", {"Content-Type": "image/jpeg"}, photograph())
    with tempfile.TemporaryDirectory(prefix="pocketzoo-attacks-") as folder:
        write_working(Path(folder) / "working" / "model.onnx")
        with serving(Path(folder), POCKETZOO_POLL_SECONDS="0.5", POCKETZOO_DEFAULT_MODEL="working") as server:
            for name in names:
                note(f"{name} ...")
                # Anew for each: a shared machine is not always as fast.
                capacity = _honest(server, request, seconds=min(5.0, seconds), rate=None)["rate"]
                yield _row(name, server, request, seconds=seconds, rate=capacity / 2)


def _row(name: str, server: Server, request: str, *, seconds: float, rate: float) -> Row:
    # What takes long to make is there before the attack begins.
    if name == "decode bombs":
        bomb_files(EDGES)
    flood_requests()
    alone = _honest(server, request, seconds=seconds, rate=rate)
    before = sorted(worker.pid for worker in server.workers())
    with watching(server) as watch, _attacking(name, server) as attack:
        found = _honest(server, request, seconds=seconds, rate=rate)
    assert watch.memory is not None
    failed = sum(found["errors"].values()) + sum(n for status, n in found["status"].items() if status != "200")
    times = found["ok_ms"]["p99"] / alone["ok_ms"]["p99"] if found["ok_ms"] else float("inf")
    same = sorted(worker.pid for worker in server.workers()) == before
    return {
        "attack": name,
        "seconds": seconds,
        "honest_per_second": round(rate, 1),
        "n": sum(found["status"].values()) + sum(found["errors"].values()),
        "failed": failed,
        "status": found["status"],
        "errors": found["errors"],
        "p50_alone_ms": alone["ok_ms"]["p50"],
        "p99_alone_ms": alone["ok_ms"]["p99"],
        "p50_ms": found["ok_ms"]["p50"] if found["ok_ms"] else None,
        "p99_ms": found["ok_ms"]["p99"] if found["ok_ms"] else None,
        "times": round(times, 2),
        "attackers": dict(sorted(attack.counts.items())),
        "grew_mb": round(watch.memory.highest - watch.memory.before, 1),
        "same_worker": same,
        "ok": failed == 0 and times < _MOST_TIMES and same,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 all held, 1 not all, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.attacks", description="Attacks beside honest load.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each attack (default 60)")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"repeatable; one of {', '.join(ATTACKS)}")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    common = stamp("bentoml")
    try:
        for row in run(options.only or list(ATTACKS), seconds=options.seconds):
            rows.append(row | common)
            append(output_root() / "bench" / ROWS, rows[-1:])
    except PocketzooError as error:
        note(f"error: {error}")
        return 2 if isinstance(error, UsageError) else 1
    print(soak_tables.attacks(rows))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    requests_to_end_interrupt()  # the servers that were started end, too
    sys.exit(main())
