"""Faults of the folder of models: swaps under load, files that are broken, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from bench.serving.server import serving
from tests.soak.artefacts import replace, write_tiny
from tests.soak.harness import Case, Result, exchange, head, hurry, load, until, version
from zoo.base.files import sha256_file

__all__ = ["fault_broken_artefacts", "fault_disk_full", "fault_hot_swap"]

_SWAP_SECONDS = 15.0
_CONNECTIONS = 8


def _short_digest(path: Path) -> str:
    return sha256_file(path)[:12]


def _until_answers(case: Case, new: Path) -> float | None:
    """Seconds until the version of a file answers; None if it does not in time."""
    wanted = _short_digest(new)
    return until(lambda: version(case) == wanted, _SWAP_SECONDS)


def fault_hot_swap(case: Case) -> Result:
    """The model's file is replaced again and again under load: nothing fails, and each version comes to answer."""
    result = Result(name="hot swap under load")
    target = case.server.models / "tiny" / "model.onnx"
    swaps = case.many(20, 4)
    with tempfile.TemporaryDirectory() as folder, case.same_workers(result):
        news = [write_tiny(Path(folder) / "tiny" / f"{seed}.onnx", seed=1000 + seed) for seed in range(swaps)]
        expected = {_short_digest(target), *map(_short_digest, news)}
        took = []
        with load(case, connections=_CONNECTIONS) as client:
            hurry(case, 1.0, 0.3)
            for new in news:
                replace(target, new)
                passed = _until_answers(case, new)
                result.expect(passed is not None, f"{new.name} did not answer within {_SWAP_SECONDS:g} s")
                took.append(passed or _SWAP_SECONDS)
                hurry(case, 0.5, 0.05)
            found = client.stop()
    errors = result.take(found)
    result.expect(not errors and set(found["status"]) == {"200"}, f"failed requests: {found['status']}, {errors}")
    result.expect(set(found["tally"]) == expected, f"versions {sorted(found['tally'])}, expected {sorted(expected)}")
    result.detail.append(
        f"{swaps} swaps, each answering within {max(took):.2f} s; p99 {found['ok_ms']['p99']:.1f} ms at "
        f"{_CONNECTIONS} connections"
    )
    return result


def _empty(target: Path, good: bytes) -> None:
    target.write_bytes(b"")


def _random(target: Path, good: bytes) -> None:
    target.write_bytes(os.urandom(len(good)))


def _cut(target: Path, good: bytes) -> None:
    target.write_bytes(good[:-1])


def _removed(target: Path, good: bytes) -> None:
    target.unlink()


def _half_written(target: Path, good: bytes) -> None:
    with target.open("wb") as stream:
        stream.write(good[: len(good) // 2])


def _flipped(target: Path, good: bytes) -> None:
    # Half-way, among the weights: still a readable file, with other answers than its golden one.
    changed = bytearray(good)
    for place in range(200, min(len(changed), 1400)):
        changed[place] ^= 0x55
    target.write_bytes(bytes(changed))


_BREAKS: dict[str, Callable[[Path, bytes], None]] = {
    "empty": _empty,
    "random bytes": _random,
    "half written": _half_written,
    "bits flipped": _flipped,
    "cut by one byte": _cut,
    "removed": _removed,
}


def fault_broken_artefacts(case: Case) -> Result:
    """A broken file in the place of the model, and as a new model: the old version goes on answering."""
    result = Result(name="broken artefacts")
    target = case.server.models / "tiny" / "model.onnx"
    good = target.read_bytes()
    old = _short_digest(target)
    with tempfile.TemporaryDirectory() as folder, case.same_workers(result):
        liar = write_tiny(Path(folder) / "tiny" / "liar.onnx", seed=77, liar=True)
        breaks = _BREAKS | {"tampered (golden check)": lambda target, good: replace(target, liar)}
        with load(case, connections=4) as client:
            for name, spoil in breaks.items():
                spoil(target, good)
                # Long enough to be noticed, read and refused.
                hurry(case, 3.0, 0.5)
                found = version(case)
                result.expect(found == old, f"{name}: {found} answered, expected {old}")
                target.write_bytes(good)
            _expect_never_answered(case, result, liar)
            found_load = client.stop()
        errors = result.take(found_load)
        result.expect(not errors and set(found_load["status"]) == {"200"}, f"{found_load['status']}, {errors}")
        result.expect(set(found_load["tally"]) == {old}, f"versions {sorted(found_load['tally'])} answered")
        new = write_tiny(Path(folder) / "tiny" / "new.onnx", seed=78)
        replace(target, new)
        passed = _until_answers(case, new)
        result.expect(passed is not None, "a good file after the broken ones was not taken")
    result.detail.append(f"{len(breaks)} kinds of broken files; a good one after them answers")
    return result


def _expect_never_answered(case: Case, result: Result, liar: Path) -> None:
    """A new folder with a broken file gets a refusal; none of the other models suffers."""
    folder = case.server.models / "newcomer"
    folder.mkdir()
    try:
        (folder / "model.onnx").write_bytes(liar.read_bytes())
        hurry(case, 3.0, 0.6)
        found = exchange(case.server.port, head("/v1/models/newcomer:predict", len(case.picture)) + case.picture)
        result.detail.append(f"a new model that fails its check: {found}")
        result.expect(found in ("404", "503"), f"a new model that fails its check got {found}")
    finally:
        (folder / "model.onnx").unlink()
        folder.rmdir()
        hurry(case, 2.0, 0.3)


def fault_disk_full(case: Case) -> Result:
    """No byte can be written where the server keeps its temporary files: it goes on answering."""
    result = Result(name="disk full")
    with tempfile.TemporaryDirectory() as name:
        models, state = Path(name) / "models", Path(name) / "state"
        target = write_tiny(models / "tiny" / "model.onnx", seed=1)
        new = write_tiny(Path(name) / "new" / "new.onnx", seed=2)
        state.mkdir()
        with (
            _small_disk(state) as small,
            serving(models, POCKETZOO_POLL_SECONDS="0.2", TMPDIR=str(state)) as server,
        ):
            own = Case(server=server, picture=case.picture, short=case.short)
            with own.same_workers(result):
                _fill(state) if small else _forbid_writing(own)
                with load(own, connections=4) as client:
                    replace(target, new)
                    passed = _until_answers(own, new)
                    result.expect(passed is not None, "a new version was not taken")
                    status = _large_form(own)
                    hurry(case, 3.0, 0.3)
                    found = client.stop()
    errors = result.take(found)
    result.expect(not errors and set(found["status"]) == {"200"}, f"failed requests: {found['status']}, {errors}")
    # Forms are held in memory, so that the disk has no part in it: an image with 3 MB of zeros behind it is answered.
    result.expect(status == "200", f"a form of 3 MB got {status}, expected 200")
    way = "a tmpfs of 256 KB, filled" if small else "a limit of 0 bytes for files of the worker (no right to mount)"
    result.detail.append(f"{way}; a new version answers; a form of 3 MB gets {status}")
    return result


def _large_form(case: Case) -> str:
    """Status of a form that is larger than what forms are kept in memory, with an image and something that is none."""
    part = '--q\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    body = part.encode() + case.picture + bytes(3_000_000) + b"\r\n--q--\r\n"
    return exchange(case.server.port, head("/predict", len(body), media="multipart/form-data; boundary=q") + body)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system; False where this process may not."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "pocketzoo-soak", str(folder)], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)


def _fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def _forbid_writing(case: Case) -> None:
    for worker in case.server.workers():
        worker.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))
