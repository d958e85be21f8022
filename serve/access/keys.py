"""Who may predict, and how often: API keys from a file, and a rate for each.

Where there is a file, predicting needs a key. A client sends its key as `Authorization: Bearer KEY` (RFC 6750, section
2.1) or as `X-API-Key: KEY`.
"""

from __future__ import annotations

import hmac
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from serve.access.buckets import Bucket, shared_file
from serve.access.key_file import KeyEntry, digest_of, read_keys
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import UsageError

__all__ = ["Keys"]

_log = logging.getLogger("bentoml.pocketzoo.keys")

_HOW = "send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class Keys:
    """The API keys of one worker.

    Several workers count in files that they share, so that together they let through what the file says; where there
    can be none, each has its part, with a warning.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file that `settings.keys_file` names; without one, anyone may predict.

        Raises:
            UsageError: the file cannot be read, has no key, or an entry does not fit.
        """
        self._path = settings.keys_file
        self._workers = settings.workers
        self._clock = clock
        self._digests: tuple[tuple[bytes, str], ...] = ()
        self._buckets: dict[str, Bucket] = {}
        self._rates: dict[str, float] = {}
        self._stamp: tuple[int, ...] | None = None
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._use(_read(self._path))

    @property
    def required(self) -> bool:
        """Whether predicting needs a key."""
        return self._path is not None

    def authorize(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The name of the key that a request came with; None where none is needed.

        Args:
            headers: lower-case name -> value.

        Raises:
            Refused: 401 without a known key.
        """
        if not self.required:
            return None
        key = _key(headers)
        if key is None:
            raise Refused(401, f"this needs an API key, and none came; {_HOW}")
        if (name := self._find(key)) is None:
            raise Refused(401, f"the API key is not one of this server's; {_HOW}")
        return name

    def take(self, name: str | None) -> None:
        """Count one request of the key `name` (what :meth:`authorize` returned) against its rate.

        Raises:
            Refused: 429, with the seconds after which one more may come.
        """
        bucket = self._buckets.get(name or "")
        if bucket is not None and name is not None and (wait := bucket.take(self._clock())):
            raise Refused(
                429,
                f"the API key {name!r} has used up its rate of {self._rates[name]:g} requests per second; "
                f"try again in {wait:.2f} seconds",
                retry_after=wait,
            )

    def reload(self, *, force: bool = False) -> bool:
        """Read the file again if it changed, or if `force`; cheap enough to be called every second.

        A file that cannot be used, or has no key any more, leaves the keys as they are, with a warning.

        Returns:
            Whether the file was read and is in use now.
        """
        if self._path is None:
            return False
        stamp = _stamp(self._path)
        if stamp == self._stamp and not force:
            return False
        # The stamp is older than what is read: a change in between is seen by the next call.
        self._stamp = stamp
        try:
            self._use(_read(self._path))
        except UsageError as error:
            _log.warning("the API keys stay as they were: %s", error)
            return False
        _log.info("%d API keys read from %s", len(self._digests), self._path)
        return True

    def _use(self, entries: tuple[KeyEntry, ...]) -> None:
        buckets = {entry.name: self._bucket(entry) for entry in entries if entry.rate is not None}
        for name, bucket in buckets.items():
            old = self._buckets.get(name)
            if old is not None and (old.rate, old.capacity) == (bucket.rate, bucket.capacity):
                buckets[name] = old
        self._buckets = buckets
        self._rates = {entry.name: entry.rate for entry in entries if entry.rate is not None}
        self._digests = tuple((bytes.fromhex(entry.sha256), entry.name) for entry in entries)

    def _find(self, key: bytes) -> str | None:
        digest = digest_of(key)
        found = None
        # Through all of them, so that the time says neither whether nor where there is a match.
        for known, name in self._digests:
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _bucket(self, entry: KeyEntry) -> Bucket:
        assert entry.rate is not None
        now, rate, capacity = self._clock(), entry.rate, float(entry.capacity)
        if self._workers == 1:
            return Bucket(rate, capacity, now)
        try:
            return Bucket(rate, capacity, now, file=shared_file(f"{entry.name} {entry.sha256} {rate} {capacity}"))
        except OSError as error:
            _log.warning("each worker counts its part of the rate of %s by itself: %s", entry.name, error)
        return Bucket(rate / self._workers, max(1.0, capacity / self._workers), now)


def _key(headers: Mapping[bytes, bytes]) -> bytes | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    # Another scheme may be meant for a proxy in front.
    if scheme.lower() == b"bearer" and (token := token.strip()):
        return token
    return headers.get(b"x-api-key", b"").strip() or None


def _read(path: Path) -> tuple[KeyEntry, ...]:
    entries = read_keys(path)
    if not entries:
        raise UsageError(
            f"{path}: expected at least one [[key]], found none; write one with `pocketzoo key NAME --file {path}`, "
            "or unset POCKETZOO_KEYS_FILE to serve without keys"
        )
    if _mode(path) & 0o077:
        _log.warning("%s is open to other users; `chmod 600 %s` keeps it private", path, path)
    return entries


def _mode(path: Path) -> int:
    # Elsewhere than on POSIX the bits say nothing about others.
    try:
        return stat.S_IMODE(path.stat().st_mode) if os.name == "posix" else 0
    except OSError:
        return 0


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
