"""Names of files, one after the other and in a fixed order, however many there are: folders, globs, object stores.

A folder is sorted in windows of _WINDOW entries: whole, if it has no more. A larger one comes in the file system's own
order with every window sorted, because to sort ten million names before the first image is scored takes minutes and
gigabytes. That order stays while nothing is added to the folder or removed; should it change, the digests of the
partitions tell. S3 lists all keys below a prefix in their order, a page at a time; of other object stores one folder's
names are in memory.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.utils import glob_translate

from zoo.base.errors import DataError, PocketzooError, UsageError

__all__ = ["Found", "is_url", "listed", "located", "open_file", "shown"]

_WINDOW = 1 << 16
"""Entries of a folder that are sorted together: a tenth of a second, 20 MB."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_STATES = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
"""What file systems of fsspec call that which changes with a file's content; the first that is there counts."""


class Found(NamedTuple):
    """A file, not yet looked at."""

    path: str
    """As it is opened: a URL, or a path (os.fsdecode's where it is not Unicode)."""
    info: os.DirEntry[str] | Path | Mapping[str, Any]

    def state(self) -> str:
        """Size and time of change, or an object store's own mark: another text if the file was changed."""
        if isinstance(self.info, Mapping):
            return f"{self.info.get('size')} {next((self.info[key] for key in _STATES if key in self.info), '')}"
        try:
            state = self.info.stat()
        except OSError:
            return "unreadable"
        return f"{state.st_size} {state.st_mtime_ns}"


def is_url(text: str) -> bool:
    """Whether it names something on an object store, or with any other protocol of fsspec."""
    return _URL.match(text) is not None


def shown(path: str) -> str:
    """A path as valid Unicode; bytes that are none are escaped."""
    if path.isascii():
        return path
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def located(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL or path names, and the path there.

    Raises:
        UsageError: the package for its protocol is not installed.
        DataError: its protocol is unknown.
    """
    try:
        # A cache of listings would keep every name.
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise UsageError(f"{url}: {error}; `pip install 'pocketzoo[s3]'` brings what s3:// needs") from error
    except ValueError as error:
        raise DataError(f"{url}: {error}; expected s3://BUCKET/NAME or another protocol of fsspec") from error
    return system, str(path).rstrip("/")


def open_file(path: str) -> Any:
    """Open a path or URL for reading bytes."""
    if not is_url(path):
        return open(path, "rb")  # noqa: PTH123 - paths need not be valid Unicode
    system, place = located(path)
    return system.open(place, "rb")


def listed(text: str, passed: Counter[str], *, out: str = "") -> tuple[bool, Iterator[Found]]:
    """What a folder, a glob, a file, or a URL of one of them names.

    Hidden files and folders are left out, and links to folders, which may lead in a circle; `passed` counts them.

    Args:
        text: what the user named.
        passed: reasons for which files are left out, counted while the names are taken.
        out: a path or URL whose files are no part of it.

    Returns:
        Whether the files were named, by a glob or one by one, and the files.

    Raises:
        DataError: nothing is there, or a folder cannot be read (perhaps only when its names are taken).
        UsageError: a glob that means nothing, or a URL without a package for it.
    """
    text = text.removeprefix("file://")
    if is_url(text):
        return _on_store(text, passed, out)
    path = Path(text)
    if path.is_file():
        return True, iter([Found(text, path)])
    away = Path(out) if out and not is_url(out) else None
    if path.is_dir():
        return False, _below(text.rstrip("/") + "/", lambda _: True, passed, away)
    if not glob.has_magic(text):
        raise DataError(f"{text}: nothing is there; name a folder, a glob in quotes, an image, a Parquet or a tar file")
    match, base = _pattern(text), text[: text.rfind("/", 0, _magic(text)) + 1]
    if not Path(base or ".").is_dir():
        raise DataError(f"{text}: there is no folder {base}")
    found = _below(base, lambda folder: _may_lead(folder, text.split("/")), passed, away)
    return True, (one for one in found if match(one.path))


def _on_store(text: str, passed: Counter[str], out: str) -> tuple[bool, Iterator[Found]]:
    system, path = located(text)
    scheme = text[: text.index("://") + 3]
    magic = glob.has_magic(path)
    base = path[: _magic(path)] if magic else path + "/"
    away = located(out)[1] + "/" if out.startswith(scheme) else base
    try:
        if not magic and system.isfile(path):
            return True, iter([Found(text, system.info(path))])
    except Exception as error:
        raise _no_answer(text, error) from error
    match = _pattern(path) if magic else lambda _: True

    def found() -> Iterator[Found]:
        try:
            for info in _keys(system, base) if hasattr(system, "call_s3") else _tree(system, base):
                name = str(info["name"])
                if (away != base and name.startswith(away)) or not match(name):
                    continue
                if any(part.startswith(".") for part in name[len(base) :].split("/")):
                    passed["hidden"] += 1
                else:
                    yield Found(scheme + name.lstrip("/"), info)
        except PocketzooError:
            raise
        # Every file system of fsspec has errors of its own.
        except Exception as error:
            raise _no_answer(text, error) from error

    return magic, found()


def _no_answer(text: str, error: Exception) -> DataError:
    return DataError(
        f"{text}: cannot be listed ({type(error).__name__}: {error}); check the name, the credentials and the network"
    )


def _keys(system: Any, base: str) -> Iterator[Mapping[str, Any]]:
    """All keys of S3 that begin with `BUCKET/PREFIX`, a page of a thousand at a time, as S3 sorts them."""
    bucket, _, prefix = base.partition("/")
    more: dict[str, str] = {}
    while True:
        page = system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                yield entry | {"name": f"{bucket}/{entry['Key']}", "size": entry["Size"]}
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _tree(system: Any, base: str) -> Iterator[Mapping[str, Any]]:
    folder = base[: base.rfind("/") + 1].rstrip("/")
    entries = [entry | {"name": str(entry["name"]).rstrip("/")} for entry in system.ls(folder, detail=True)]
    for entry in sorted(entries, key=lambda entry: entry["name"] + "/" * (entry["type"] == "directory")):
        if entry["type"] == "directory":
            yield from _tree(system, entry["name"] + "/")
        else:
            yield entry


def _below(prefix: str, enters: Callable[[str], bool], passed: Counter[str], away: Path | None) -> Iterator[Found]:
    """Files below a folder, in the order of their paths; `prefix` is the folder and a slash, or nothing."""
    try:
        with os.scandir(prefix or ".") as entries:
            while window := sorted(itertools.islice(entries, _WINDOW), key=_order):
                for entry in window:
                    path = prefix + entry.name
                    if entry.name.startswith("."):
                        passed["hidden"] += 1
                    elif not entry.is_dir():
                        yield Found(path, entry)
                    elif entry.is_symlink():
                        passed["links to folders"] += 1
                    elif enters(path) and not (away and away.exists() and away.samefile(path)):
                        yield from _below(f"{path}/", enters, passed, away)
    except OSError as error:
        raise DataError(
            f"{shown(prefix)}: the folder cannot be read ({error.strerror}), so its images would be missing; allow it "
            "with `chmod u+rx`, or move it away"
        ) from error


def _order(entry: os.DirEntry[str]) -> str:
    """With the slash behind folders' names, files come in the order of their whole paths, as on S3."""
    return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name


def _magic(pattern: str) -> int:
    return min(place for place, letter in enumerate(pattern) if letter in "*?[")


def _pattern(pattern: str) -> Callable[[str], object]:
    try:
        return re.compile(glob_translate(pattern)).match
    except ValueError as error:
        raise UsageError(f"{pattern}: `**` stands alone, for folders at any depth: write `**/*.jpg`") from error


def _may_lead(folder: str, parts: list[str]) -> bool:
    """Whether files below a folder may match a pattern of these parts."""
    names = folder.split("/")
    for name, part in zip(names, parts, strict=False):
        if part == "**":
            return True
        if not fnmatch.fnmatchcase(name, part):
            return False
    return len(names) < len(parts)
