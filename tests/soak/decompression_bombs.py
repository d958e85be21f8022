"""Faults of small or strange image files that would take much memory or time to decode."""

from __future__ import annotations

from bench.serving.server import watching
from tests.soak.files import claims, floods, png, scans
from tests.soak.harness import Case, Result, exchange, expect_memory, head, probing

__all__ = ["fault_bomb"]

_DECODED_MB = 150.0
"""The largest image that is decoded: six bytes for each of 25 million pixels (POCKETZOO_MAX_PIXELS, by default)."""

_EDGES = (5000, 4999)
"""Just below POCKETZOO_MAX_PIXELS."""

_PROBE_SECONDS = 3.0
_ANSWER_SECONDS = 60.0
_REFUSED = frozenset({"413"})
_SERVED_OR_REFUSED = frozenset({"200", "413", "415", "422"})


def _files(case: Case) -> list[tuple[str, str, bytes, frozenset[str]]]:
    """Each with its name, media type and the answers that it may get."""
    claimed = claims(50_000).items()
    found = [(f"{kind} that claims 50,000 x 50,000", f"image/{kind}", data, _REFUSED) for kind, data in claimed]
    found.append(("whole PNG above the limit", "image/png", png(*(case.many(20_000, 6_000),) * 2), _REFUSED))
    for name, bits, channels in (("8-bit RGB", 8, 3), ("16-bit RGB", 16, 3), ("16-bit grey", 16, 1)):
        data = png(*_EDGES, bits=bits, channels=channels)
        found.append((f"{name} PNG below the limit", "image/png", data, _SERVED_OR_REFUSED))
    edge = case.many(4000, 256)
    found.append(("JPEG of 2,000 scans", "image/jpeg", scans(edge, edge, 2000), _SERVED_OR_REFUSED))
    for kind, data in floods(case.many(20_000_000, 500_000)).items():
        found.append((f"{kind} of comments", f"image/{kind}", data, _SERVED_OR_REFUSED))
    return found


def fault_bomb(case: Case) -> Result:
    """Images that cost much more than their bytes: refused or answered, while others go on being served."""
    result = Result(name="decompression bombs")
    files, rounds = _files(case), case.many(5, 1)
    # A file of megabytes is held as a body, as an image and, for a while, once more by its decoder.
    largest = 3 * max(len(data) for _, _, data, _ in files) / 1e6
    with case.same_workers(result), watching(case.server, every=0.02) as watch, probing(case) as probe:
        for name, media, data, allowed in files * rounds:
            for path in ("/v1/predict", "/predict"):
                found = exchange(case.server.port, _upload(path, media, data), timeout=_ANSWER_SECONDS)
                result.counts[found] += 1
                result.expect(found in allowed, f"{path}, {name}: {found}, expected {' or '.join(sorted(allowed))}")
    probe.expect(result, worst=_PROBE_SECONDS)
    # The allocator keeps a thread's pages for a while, and another thread may decode the next image meanwhile.
    expect_memory(result, watch.memory, more=2 * _DECODED_MB + largest)
    return result


def _upload(path: str, media: str, data: bytes) -> bytes:
    if path != "/predict":
        return head(path, len(data), media=media) + data
    start = f'--q\r\nContent-Disposition: form-data; name="images"; filename="a"\r\nContent-Type: {media}\r\n\r\n'
    body = start.encode() + data + b"\r\n--q--\r\n"
    return head(path, len(body), media="multipart/form-data; boundary=q") + body
