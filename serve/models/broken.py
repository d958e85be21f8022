"""Files that cannot be served are found before anybody asks for them, and told of once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from serve.models.folder import Artefact
from serve.models.model import Stamp
from zoo.base.errors import PocketzooError

__all__ = ["Screen"]


class Screen:
    """Remembers what it has seen: every state of a file is read once, and every sentence about the folder told once."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: dict[str, tuple[Path, Stamp]] = {}
        self._left_out: dict[str, str] = {}

    def pass_over(self, artefact: Artefact) -> None:
        """Take a file as seen: it was loaded, which reads more of it."""
        self._seen[artefact.name] = artefact.state

    def unread(self, artefacts: Iterable[Artefact]) -> Iterator[tuple[Artefact, PocketzooError | None]]:
        """Read the card of every file that is new or another one, and check its network against it; and the errors."""
        for artefact in artefacts:
            if self._seen.get(artefact.name) == artefact.state:
                continue
            self._seen[artefact.name] = artefact.state
            try:
                artefact.card()
            except PocketzooError as error:
                yield artefact, error
            else:
                yield artefact, None

    def news(self, left_out: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """What is left out of the folder, and was not when this was called before."""
        before, self._left_out = self._left_out, dict(left_out)
        yield from ((name, reason) for name, reason in left_out.items() if before.get(name) != reason)
