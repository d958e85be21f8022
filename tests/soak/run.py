"""Faults that the server must survive, against a real `bentoml serve` with tiny artefacts.

Run as `python -m tests.soak.run [--short] [--only NAME]`: prints a table with counts, appends a row per fault to
output/bench/soak.jsonl (in the long form), which `pocketzoo bench publish` takes, and exits with 1 if a fault was not
survived.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.rows import SOAK, append, stamp
from bench.serving.server import serving
from tests.soak.artefacts import picture, write_tiny
from tests.soak.bodies import fault_big_bodies, fault_malformed, fault_truncated
from tests.soak.decompression_bombs import fault_bomb
from tests.soak.harness import Case, Result
from tests.soak.models import fault_broken_artefacts, fault_disk_full, fault_hot_swap
from tests.soak.processes import fault_kill, fault_sigterm
from tests.soak.rolling import fault_rolling_update
from tests.soak.slow import fault_slow_clients
from zoo.base.errors import PocketzooError, UsageError, unknown_name
from zoo.base.files import output_root
from zoo.base.interrupt import requests_to_end_interrupt
from zoo.base.progress import note
from zoo.base.tables import rich_table

__all__ = ["FAULTS", "main", "prepared", "render", "run"]

FAULTS: dict[str, Callable[[Case], Result]] = {
    "malformed": fault_malformed,
    "truncated": fault_truncated,
    "slow-clients": fault_slow_clients,
    "bomb": fault_bomb,
    "big-bodies": fault_big_bodies,
    "hot-swap": fault_hot_swap,
    "broken-artefacts": fault_broken_artefacts,
    "kill": fault_kill,
    "disk-full": fault_disk_full,
    "sigterm": fault_sigterm,
    "rolling-update": fault_rolling_update,
}
"""By their names on the command line; most share a server, which has to survive one after the other."""

_OTHER_WORKERS = frozenset({"kill", "disk-full", "sigterm", "rolling-update"})
"""Faults whose workers are not those of the others."""

_GROWTH_MB = 100.0
"""What the worker may keep of all faults: threads, caches and what the allocator does not give back."""


@contextlib.contextmanager
def prepared(*, short: bool, seed: int = 0) -> Iterator[Case]:
    """A server with one tiny artefact, for all faults; stopped after the block."""
    with tempfile.TemporaryDirectory(prefix="pocketzoo-soak-") as name:
        write_tiny(Path(name) / "tiny" / "model.onnx", seed=0)
        with serving(Path(name), POCKETZOO_POLL_SECONDS="0.2") as server:
            yield Case(server=server, picture=picture(), short=short, seed=seed)


def run(names: Sequence[str], *, short: bool, seed: int = 0) -> list[Result]:
    """Let the named faults happen, one after the other.

    Raises:
        UsageError: an unknown name.
        ArtefactError: the server did not start.
    """
    for name in names:
        if name not in FAULTS:
            raise unknown_name("fault", name, FAULTS)
    results = []
    with prepared(short=short, seed=seed) as case:
        case.serves()
        pids, before, after = case.pids(), case.server.resident_mb(), 0.0
        for name in names:
            note(f"{name} ...")
            results.append(FAULTS[name](case))
            if name not in _OTHER_WORKERS and case.pids() == pids:
                after = case.server.resident_mb()
    return [*results, _growth(before, after)] if after else results


def _growth(before: float, after: float) -> Result:
    """What the worker kept of all faults that it went through."""
    result = Result(name="memory kept of all of them")
    result.detail.append(f"resident {before:.0f} MB before the first, {after:.0f} MB after the last of the same worker")
    grown = after - before
    result.expect(grown <= _GROWTH_MB, f"the worker grew by {grown:.0f} MB, expected {_GROWTH_MB:.0f} at most")
    return result


def _row(result: Result) -> dict[str, Any]:
    return {
        "fault": result.name,
        "n": result.requests,
        "answers": {str(status): count for status, count in result.counts.items()},
        "ok": result.ok,
        "detail": result.detail,
    }


def render(results: Sequence[Result]) -> Table:
    """A table for people."""
    cells = []
    for result in results:
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(result.counts.items()))
        survived = "yes" if result.ok else "NO"
        cells.append([result.name, f"{result.requests}", counts, survived, "; ".join(result.detail)])
    heading = ["<fault", "requests", "<answers", "<survived", "<detail"]
    return rich_table(heading, cells, folded=("fault", "answers", "detail"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 all survived, 1 not all, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.run", description="Faults that the server must survive."
    )
    parser.add_argument("--short", action="store_true", help="a few requests per fault, half a minute in total")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"repeatable; one of {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the malformed requests")
    options = parser.parse_args(arguments)
    try:
        results = run(options.only or list(FAULTS), short=options.short, seed=options.seed)
    except PocketzooError as error:
        note(f"error: {error}")
        return 2 if isinstance(error, UsageError) else 1
    if not options.short:
        common = stamp("bentoml")
        append(output_root() / "bench" / SOAK, [_row(result) | common for result in results])
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(render(results))
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    requests_to_end_interrupt()  # the servers that were started end, too
    sys.exit(main())
