"""Files of official data sets: downloaded once, checked, unpacked, and never replaced silently.

Everything lies under `POCKETZOO_DATA`, else `~/.cache/pocketzoo`. Beside each downloaded FILE lies `FILE.sha256` (the
format of `sha256sum`): where the publisher gives no checksum, the first download is trusted and a later, different one
is refused. A download that was interrupted continues, provided that the server's file is still the same one.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from zoo.base.errors import DataError
from zoo.base.files import sha256_file, write_bytes
from zoo.base.progress import note, track

__all__ = ["Remote", "data_root", "fetch", "unpack"]

_TIMEOUT_S = 60.0
_CHUNK = 1 << 20


def data_root() -> Path:
    """The folder of downloaded data sets: `POCKETZOO_DATA`, else `~/.cache/pocketzoo`."""
    return Path(os.environ.get("POCKETZOO_DATA") or Path.home() / ".cache" / "pocketzoo").expanduser()


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file that its publisher offers."""

    url: str
    md5: str | None = None
    """As the publisher or torchvision gives it; None where nobody does, so that the first download is trusted."""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urllib.parse.urlparse(self.url).path).name

    @property
    def checksum(self) -> str:
        """What is expected of the file, for messages."""
        return f"MD5 {self.md5}" if self.md5 else "no checksum is published"


def fetch(remote: Remote, folder: Path) -> Path:
    """The file in `folder`, downloaded if it is not there, and checked every time.

    Raises:
        DataError: it cannot be downloaded (says where to put it by hand), came incompletely, or is not the expected
            one.
    """
    path = folder / remote.name
    with _locked(folder):
        if not path.is_file():
            _download(remote, path)
        _check(remote, path)
    return path


def unpack(remote: Remote, folder: Path, expected: Sequence[str]) -> None:
    """Unpack an archive into `folder`, downloading it first; nothing is done if that was completed before.

    The archive is unpacked beside its place and moved there when complete, so a killed run leaves nothing that could
    be taken for the data set. Members that would land outside (absolute names, `..`, links) are refused.

    Args:
        remote: a `.tar.gz`, `.tgz` or `.zip`.
        folder: where the archive lies and its content goes.
        expected: names that the archive has at its top; they replace what is there.

    Raises:
        DataError: see :func:`fetch`; or the archive is damaged, unsafe, or lacks an expected name.
    """
    marker = folder / f".{remote.name}.unpacked"
    if marker.is_file() and all((folder / name).exists() for name in expected):
        return
    path = fetch(remote, folder)
    with _locked(folder):
        for leftover in folder.glob(f".{remote.name}.*.tmp"):
            shutil.rmtree(leftover)
        place = Path(tempfile.mkdtemp(dir=folder, prefix=f".{remote.name}.", suffix=".tmp"))
        try:
            _extract(path, place)
            for name in expected:
                if not (place / name).exists():
                    found = sorted(entry.name for entry in place.iterdir())
                    raise DataError(
                        f"{path}: expected {name} at the archive's top, found {found}; is it the right one?"
                    )
            for name in expected:
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
                (place / name).rename(folder / name)
        finally:
            shutil.rmtree(place)
        write_bytes(marker, f"{sha256_file(path)}\n".encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the folder {folder}: {error}; set POCKETZOO_DATA to one you may write to"
        ) from error
    with FileLock(folder / ".lock"):
        yield


def _check(remote: Remote, path: Path) -> None:
    """Compare a file with the published checksum, or else with what was first seen under its name."""
    if remote.md5 and (found := _md5(path)) != remote.md5:
        raise DataError(
            f"{path}: expected MD5 {remote.md5}, got {found}; it is damaged or another file: delete it and try again, "
            f"or put the file of {remote.url} there"
        )
    record = path.with_name(f"{path.name}.sha256")
    digest = sha256_file(path)
    if not record.is_file():
        write_bytes(record, f"{digest}  {path.name}\n".encode())
        if not remote.md5:
            note(f"{path.name}: SHA-256 {digest}; no checksum is published, so this one is trusted from now on")
    elif (first := record.read_text(encoding="utf-8").split()[0]) != digest:
        raise DataError(
            f"{path}: expected SHA-256 {first} (as first seen, in {record.name}), got {digest}; {remote.url} or the "
            f"file has changed: put the first one back, or delete {record} to trust this one"
        )


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(remote: Remote, path: Path) -> None:
    """Download to `.NAME.part`, continuing what is there of the same version; rename when complete and as expected."""
    part, tag = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.etag")
    by_hand = f"download it elsewhere ({remote.checksum}), put it at {path}, and repeat"
    try:
        try:
            _transfer(remote.url, part, tag)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            # Complete already when the last run was killed, or the file is shorter now.
            part.unlink()
            _transfer(remote.url, part, tag)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"cannot download {remote.url}: {reason or type(error).__name__}; {by_hand}") from error
    if remote.md5 and (found := _md5(part)) != remote.md5:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise DataError(
            f"{remote.url}: expected MD5 {remote.md5}, got {found}; nothing was kept; try again, or {by_hand}"
        )
    part.replace(path)
    tag.unlink(missing_ok=True)


def _transfer(url: str, part: Path, tag: Path) -> None:
    """Write the whole of `url` to `part`.

    Raises:
        OSError: not reachable, refused, or the connection ended early; `part` keeps what came.
    """
    if urllib.parse.urlparse(url).scheme not in ("http", "https"):
        raise DataError(f"{url}: expected an address that starts with https:// or http://")
    have = part.stat().st_size if part.is_file() else 0
    known = tag.read_text(encoding="utf-8") if have and tag.is_file() else ""
    headers = {"User-Agent": "pocketzoo"}
    if known:
        # The rest is sent only if the file is still the one that the beginning came from (RFC 9110, section 13.1.5).
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with _opener().open(request, timeout=_TIMEOUT_S) as response:
        start = _start(response, have)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if not start:
            part.unlink(missing_ok=True)
        etag = response.headers.get("ETag", "")
        # A weak validator promises the same meaning, not the same bytes.
        write_bytes(tag, (etag if not etag.startswith("W/") else "").encode())
        with part.open("ab") as stream:
            _copy(response, stream, (total or 0) - start, part.name.removeprefix(".").removesuffix(".part"))
            got = stream.tell()
    if total is not None and got != total:
        raise ConnectionError(f"the connection ended after {got} of {total} bytes (repeating continues there)")


def _start(response: Any, have: int) -> int:
    """Where the bytes of a response belong: 0, or the end of what is there."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if not sent or int(sent.group(1)) != have:
        raise ConnectionError("the server sent another part than the one that is missing")
    return have


def _copy(response: Any, stream: IO[bytes], size: int, name: str) -> None:
    chunks = iter(lambda: response.read(_CHUNK), b"")
    for chunk in track(chunks, total=max(0, -(-size // _CHUNK)), description=f"Downloading {name}", unit="MiB"):
        stream.write(chunk)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise ConnectionError(f"redirected from https to {newurl}, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoDowngrade)


def _extract(path: Path, place: Path) -> None:
    try:
        if path.suffix == ".zip":
            _extract_zip(path, place)
        else:
            with tarfile.open(path, "r:gz") as tar:
                members = track(tar, total=0, description=f"Unpacking {path.name}", unit=" files")
                tar.extractall(place, members=members, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{path}: unsafe archive, nothing was unpacked: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}; delete it and try again") from error


def _extract_zip(path: Path, place: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            # zipfile would quietly rename such members; an archive that has them is not the one that is meant.
            inner = PureWindowsPath(member.filename)
            if inner.anchor or ".." in inner.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{path}: unsafe archive, nothing was unpacked: member {member.filename!r}")
        for member in track(members, total=len(members), description=f"Unpacking {path.name}", unit=" files"):
            archive.extract(member, place)
