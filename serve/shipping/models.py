"""Which models go into the image, checked like the server checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import ArtefactError, PocketzooError, UsageError
from zoo.files import GRAPH, INT8_GRAPH, graph_paths
from zoo.predictor import Predictor

__all__ = ["Choice", "ShippedModel", "choose_models"]

_SERVED = (GRAPH, INT8_GRAPH)


@dataclass(frozen=True, kw_only=True)
class ShippedModel:
    """One ONNX file, and where it goes."""

    path: Path
    target: str
    """`output/<folder>/<file>`, as the server expects it."""
    digest: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    bytes: int
    labels: int
    """Classes."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The models that go into the image, and what did not."""

    models: tuple[ShippedModel, ...]
    left_out: tuple[str, ...]
    """A sentence per file that was found but cannot be served."""


def choose_models(artefacts: Sequence[Path], root: Path) -> Choice:
    """The files of `artefacts`, which are folders or ONNX files; none: all that the server serves of `root`.

    Every file is loaded and answers its golden question, as when the server starts.

    Raises:
        UsageError: two artefacts with one name, or a file that the server does not look for.
        ArtefactError: a named artefact that cannot be served, or none at all.
    """
    paths = [path for artefact in artefacts for path in graph_paths(artefact)] or _found(root)
    models: dict[str, ShippedModel] = {}
    left_out = []
    for path in paths:
        try:
            model = _checked(path.resolve())
        except PocketzooError as error:
            if artefacts:
                raise
            left_out.append(str(error))
            continue
        other = models.setdefault(model.target, model)
        if other.path != model.path:
            raise UsageError(f"{path} and {other.path} would both be {model.target}; rename one of the folders")
    if not models:
        raise ArtefactError(
            f"no artefact to ship: expected {root}/<name>/{GRAPH} or {INT8_GRAPH}, "
            + ("; ".join(left_out) or "found neither; `make train compress export` writes them")
        )
    return Choice(models=tuple(models.values()), left_out=tuple(left_out))


def _found(root: Path) -> list[Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [
        folder / name
        for folder in folders
        if not folder.name.startswith(".")
        for name in _SERVED
        if (folder / name).is_file()
    ]


def _checked(path: Path) -> ShippedModel:
    if path.name not in _SERVED:
        raise UsageError(
            f"{path}: expected a file called {' or '.join(_SERVED)}, which are those that the server serves"
        )
    predictor = Predictor(path, threads=1)
    return ShippedModel(
        path=path,
        target=f"output/{path.parent.name}/{path.name}",
        digest=predictor.digest,
        bytes=path.stat().st_size,
        labels=len(predictor.card.use.labels),
    )
