"""Which models go into the image, checked like the server checks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.models.folder import SUFFIXES, scan
from zoo.artefact.engines.golden import answer_of
from zoo.artefact.engines.runtimes import ENGINES, REFERENCE
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.files import graph_paths

__all__ = ["Choice", "ShippedModel", "choose_models"]


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
    engines: tuple[str, ...]
    """Names of zoo.artefact.engines.runtimes that have a golden answer in the file, without which none may answer."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The models that go into the image, and what did not."""

    models: tuple[ShippedModel, ...]
    left_out: tuple[str, ...]
    """A sentence per file that was found but cannot be served."""


def choose_models(artefacts: Sequence[Path], root: Path, engine: str = REFERENCE) -> Choice:
    """The files of `artefacts`, which are folders or ONNX files; none: all that the server serves of `root`.

    Every file is loaded by `engine` and answers its golden question, as when the server starts.

    Raises:
        UsageError: two artefacts with one name, a file that the server does not look for, or an engine that a named
            artefact has no golden answer of.
        ArtefactError: a named artefact that cannot be served, or none at all.
    """
    paths = [path for artefact in artefacts for path in graph_paths(artefact)] or _found(root)
    models: dict[str, ShippedModel] = {}
    left_out = []
    for path in paths:
        try:
            # What is found is called as the server calls it, whatever it is a link to.
            model = _checked(path.resolve() if artefacts else path.absolute(), engine)
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
            f"no artefact to ship: expected {root}/<name>/{_names()}, "
            + ("; ".join(left_out) or "found none; `make train compress export` writes them")
        )
    return Choice(models=tuple(models.values()), left_out=tuple(left_out))


def _found(root: Path) -> list[Path]:
    """The files that the server would serve of `root`, ordered by their folders."""
    order = list(SUFFIXES)
    paths = [artefact.path for artefact in scan(root).values()]
    return sorted(paths, key=lambda path: (path.parent, order.index(path.name)))


def _names() -> str:
    *first, last = SUFFIXES
    return f"{', '.join(first)} or {last}"


def _checked(path: Path, engine: str) -> ShippedModel:
    if path.name not in SUFFIXES:
        raise UsageError(f"{path}: expected a file called {_names()}, which are those that the server serves")
    predictor = Predictor(path, threads=1, engine=engine)
    golden = predictor.card.use.golden
    return ShippedModel(
        path=path,
        target=f"output/{path.parent.name}/{path.name}",
        digest=predictor.digest,
        bytes=path.stat().st_size,
        labels=len(predictor.card.use.labels),
        engines=tuple(name for name in ENGINES if golden is not None and answer_of(golden, name) is not None),
    )
