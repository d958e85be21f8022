"""The file of API keys: TOML with one `[[key]]` per key, which holds the key's SHA-256 and never the key.

    [[key]]
    name = "phone-app"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    rate = 10.0
    burst = 20

A key is 32 random bytes, so that nobody can try all of them, and a plain hash is right: a slow one (bcrypt, scrypt)
would only make up for passwords that people choose, at a cost of milliseconds for every request.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import UsageError, unknown_name

__all__ = ["KeyEntry", "add_key", "digest_of", "parse_keys", "read_keys", "remove_key"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEADER = re.compile(r"(?m)^(?=[ \t]*\[\[[ \t]*key[ \t]*\]\])")
_MAX_RATE = 1e9


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """One API key as it is kept."""

    name: str
    """What logs call it."""
    sha256: str
    """64 lower-case hexadecimal digits: SHA-256 of the key's ASCII characters."""
    rate: float | None = None
    """Requests per second in the long run; None: as many as the server can."""
    burst: int | None = None
    """Requests that may come at once after a rest; None: `rate` rounded up, at least 1."""

    @property
    def capacity(self) -> int:
        """Requests that may come at once, where there is a rate."""
        return self.burst or max(1, math.ceil(self.rate or 1))


@dataclass(frozen=True, kw_only=True)
class _Document:
    key: tuple[KeyEntry, ...] = ()


def digest_of(key: bytes) -> bytes:
    """SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The entries of the file at `path`, in its order.

    Raises:
        UsageError: it cannot be read, is no TOML, or an entry does not fit; names the file and the entry.
    """
    return parse_keys(_text(path), path)


def parse_keys(text: str, path: Path) -> tuple[KeyEntry, ...]:
    """The entries in `text`; `path` is for messages.

    Raises:
        UsageError: it is no TOML, or an entry does not fit; names the file and the entry.
    """
    try:
        # ValueError: also what tomllib says to a date that does not exist.
        found = to_dataclass(_Document, _without_roles(tomllib.loads(text), path), str(path)).key
    except DocumentError as error:
        raise UsageError(f"{error}; `pocketzoo key NAME --file {path}` writes entries that fit") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: expected TOML with [[key]] entries: {error}") from error
    names: dict[str, str] = {}
    digests: dict[str, str] = {}
    for index, entry in enumerate(found):
        place = f"{path}: key[{index}] ({entry.name!r:.80})"
        _check(entry, place)
        if entry.name in names:
            raise UsageError(f"{place}: expected names that differ, this one is also that of {names[entry.name]}")
        if entry.sha256 in digests:
            raise UsageError(f"{place}: expected keys that differ, got the sha256 of {digests[entry.sha256]} again")
        names[entry.name] = digests[entry.sha256] = f"key[{index}]"
    return found


def add_key(path: Path, name: str, *, rate: float | None = None, burst: int | None = None) -> str:
    """Draw a key and append its entry to the file at `path`, which need not exist; mode 0600.

    Returns:
        The key, 43 characters of base64url: 32 random bytes. It is kept nowhere.

    Raises:
        UsageError: the name is taken, a value does not fit, or the file cannot be read or written.
    """
    text = _text(path) if path.exists() else ""
    entries = parse_keys(text, path)
    if name in [entry.name for entry in entries]:
        raise UsageError(f"{path}: there is a key {name!r}; choose another name, or remove it first (--remove)")
    key = secrets.token_urlsafe(32)
    entry = KeyEntry(name=name, sha256=digest_of(key.encode()).hex(), rate=rate, burst=burst)
    _check(entry, f"key {name!r:.80}")
    if text:
        text = text.rstrip("\n") + "\n\n"
    _write_private(path, text + _toml(entry))
    return key


def remove_key(path: Path, name: str) -> None:
    """Cut the entry `name` out of the file at `path`, with the lines below it up to the next entry.

    Raises:
        UsageError: there is no such key, or the file is laid out so that its lines cannot be told apart.
    """
    text = _text(path)
    entries = parse_keys(text, path)
    names = [entry.name for entry in entries]
    if name not in names:
        raise unknown_name(f"key in {path}", name, names)
    index = names.index(name)
    start, *blocks = _HEADER.split(text)
    shorter = start + "".join(blocks[:index] + blocks[index + 1 :])
    rest = entries[:index] + entries[index + 1 :]
    try:
        found = parse_keys(shorter, path)
    except UsageError:
        found = None
    if found != rest:
        raise UsageError(f"{path}: expected each entry below its own [[key]] line; remove {name!r} with an editor")
    _write_private(path, shorter)


def _without_roles(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document without `role = "predict"`: every key may predict, and nothing else can be allowed."""
    entries = document.get("key")
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict) and (role := entry.pop("role", "predict")) != "predict":
            raise UsageError(
                f"{path}: key[{index}] ({entry.get('name')!r:.80}): role: expected predict or no role, got {role!r:.80}"
                "; a key can only predict: change the line, or remove the key"
            )
    return document


def _check(entry: KeyEntry, place: str) -> None:
    if not _NAME.fullmatch(entry.name):
        raise UsageError(
            f"{place}: name: expected 1 to 64 letters, digits and . _ @ -, starting with a letter or digit"
        )
    if not _DIGEST.fullmatch(entry.sha256):
        raise UsageError(f"{place}: sha256: expected 64 lower-case hexadecimal digits, got {entry.sha256!r:.80}")
    if entry.rate is not None and not 0 < entry.rate <= _MAX_RATE:
        raise UsageError(f"{place}: rate: expected requests per second, above 0, got {entry.rate}")
    if entry.burst is not None and not 1 <= entry.burst <= _MAX_RATE:
        raise UsageError(f"{place}: burst: expected a whole number of at least 1, got {entry.burst}")
    if entry.burst is not None and entry.rate is None:
        raise UsageError(f"{place}: burst: expected together with a rate; without one nothing is limited")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read as a file of API keys ({error}); `pocketzoo key NAME --file {path}` writes one"
        ) from error


def _toml(entry: KeyEntry) -> str:
    # A JSON string is a TOML basic string, for the characters that a name may have.
    lines = ["[[key]]", f"name = {json.dumps(entry.name)}", f'sha256 = "{entry.sha256}"']
    if entry.rate is not None:
        lines.append(f"rate = {float(entry.rate)!r}")
    if entry.burst is not None:
        lines.append(f"burst = {entry.burst}")
    return "\n".join(lines) + "\n"


def _write_private(path: Path, text: str) -> None:
    # Not zoo.base.files.write_atomically: that gives a file the mode of any other file of the user.
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(descriptor)
            Path(name).replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); name another file with --file") from error
