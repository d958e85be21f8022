"""Which files of this project the server needs: what its modules import, read from their text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from zoo.base.errors import ArtefactError

__all__ = ["PROJECT", "server_sources"]

PROJECT = Path(__file__).resolve().parents[2]

_ENTRY = "serve"
_PACKAGES = ("serve", "zoo")
_LEFT_OUT = ("bulk", "commands", "shipping", "__pycache__")


def server_sources(project: Path = PROJECT) -> dict[str, Path]:
    """The package `serve` without its commands and what only they use, and every module of `zoo` that it imports.

    Directly or not; imports inside functions count. The keys are paths below `project`, with slashes, in alphabetical
    order.

    Raises:
        ArtefactError: a module that cannot be read.
    """
    entry = project / _ENTRY
    data = [path for path in entry.rglob("*") if path.is_file() and not _is_left_out(path.relative_to(entry))]
    found = {path for path in data if path.suffix == ".py"}
    waiting = sorted(found)
    while waiting:
        for path in _imported(waiting.pop(), project):
            if path not in found:
                found.add(path)
                waiting.append(path)
    return {path.relative_to(project).as_posix(): path for path in sorted({*found, *data})}


def _is_left_out(path: Path) -> bool:
    return any(part in _LEFT_OUT or part.startswith(".") for part in path.parts)


def _imported(path: Path, project: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError) as error:
        raise ArtefactError(
            f"{path}: expected a module of the server, got {error}; install the project anew"
        ) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from zoo import files` names a module, `from zoo.base.files import GRAPH` does not: the path tells.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _files(name.split("."), project)


def _files(parts: list[str], project: Path) -> Iterator[Path]:
    if parts[0] not in _PACKAGES:
        return
    for end in range(1, len(parts) + 1):
        place = project.joinpath(*parts[:end])
        yield from (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file())
