"""What is shipped: choosing it, composing it, and writing the folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from serve.settings import Settings
from serve.shipping.engine import engine_in_image
from serve.shipping.hashes import with_hashes
from serve.shipping.memory import Memory, measure_memory
from serve.shipping.models import ShippedModel, choose_models
from serve.shipping.requirements import installed_bytes, pinned_requirements
from serve.shipping.sizes import Sizes, openvino_bytes, told
from serve.shipping.sources import server_sources
from serve.shipping.texts import Sizing, compose
from zoo.artefact.engines.runtimes import REFERENCE
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import code_commit, sha256_file

__all__ = ["MANIFEST", "Shipment", "plan_shipment", "write_shipment"]

MANIFEST = "shipment.json"
"""Says what the folder holds; a folder that has things but no such file is not overwritten."""

_PRIVATE = "secret.yaml"

# RFC 1035, section 2.3.1, as Kubernetes wants the name of a Service; 58 leaves room for `-keys`.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,56}[a-z0-9])?")
# What github.com/distribution/reference calls a reference, without a digest: [host[:port]/]path[:tag].
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?"
)


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Everything that goes into the folder."""

    name: str
    image: str
    """`registry/path:tag`, as the manifests name it."""
    models: tuple[ShippedModel, ...]
    left_out: tuple[str, ...]
    """A sentence per artefact that cannot be served and was not asked for by name."""
    engine: str
    """As POCKETZOO_ENGINE takes it."""
    sizes: Sizes
    memory: Memory
    copies: Mapping[str, Path]
    """Path in the folder -> file that is copied."""
    texts: Mapping[str, str]
    """Path in the folder -> what is written."""


def plan_shipment(
    artefacts: Sequence[Path],
    *,
    root: Path,
    name: str = "pocketzoo",
    image: str | None = None,
    replicas: int = 2,
    cores: int = 2,
    engine: str = REFERENCE,
    hashes: bool = True,
    keys_file: Path | None = None,
) -> Shipment:
    """Choose and check the models, and compose the files; writes nothing.

    Args:
        artefacts: folders or ONNX files; none: all that can be served.
        root: where artefacts are, if none is named.
        name: of the objects in the cluster, and of the bento.
        image: `registry/path:tag`; default: `name`, and a tag drawn from the contents.
        replicas: the least that the autoscaler keeps; it goes up to four times as many.
        cores: of a container at most; half of them are reserved for it.
        engine: what computes in the image, and is installed there: as zoo.artefact.predictor.Predictor takes it. `auto`
            is OpenVINO besides ONNX Runtime if a model has a golden answer of it.
        hashes: whether the requirements have the hashes of their wheels, for which pip may have to ask its index.
        keys_file: API keys, which go into a Secret and not into the image; default: none.

    Raises:
        UsageError: a name, image, number or file of keys that does not fit.
        ArtefactError: an artefact that cannot be served, a package that is not installed, or hashes that are not known.
    """
    _check(name, image, replicas, cores)
    choice = choose_models(artefacts, root, engine)
    engine, also = engine_in_image(engine, choice.models)
    sources = server_sources()
    pins = pinned_requirements(also)
    requirements = "".join(f"{line}\n" for line in (with_hashes(pins) if hashes else pins))
    image = image or f"{name}:{_digest(sources, choice.models, requirements, engine)[:12]}"
    paths = [model.path for model in choice.models]
    memory = measure_memory(paths, engine=engine, cores=cores, settings=Settings())
    sizes = Sizes(
        models=sum(model.bytes for model in choice.models),
        packages=installed_bytes(pins),
        sources=sum(path.stat().st_size for path in sources.values()),
        openvino=openvino_bytes(),
    )
    texts = compose(
        name=name,
        image=image,
        replicas=replicas,
        models="\n".join(f"- `{model.target}`, {model.bytes / 1e6:.1f} MB" for model in choice.models),
        engine=engine,
        hashes=hashes,
        sizing=Sizing(
            cores=cores,
            memory=memory,
            sizes="\n".join(f"- {line}" for line in told(sizes, memory, len(choice.models), engine)),
        ),
        keys_file=keys_file,
    )
    return Shipment(
        name=name,
        image=image,
        models=choice.models,
        left_out=choice.left_out,
        engine=engine,
        sizes=sizes,
        memory=memory,
        copies={**sources, **{model.target: model.path for model in choice.models}},
        texts={**texts, "requirements.txt": requirements, MANIFEST: _manifest(name, image, choice.models)},
    )


def write_shipment(shipment: Shipment, out: Path) -> None:
    """Write the folder `out`, which is new, empty, or an older shipment, which is replaced.

    Raises:
        UsageError: `out` holds something else.
        ArtefactError: it cannot be written, or a model changed meanwhile.
    """
    out = out.resolve()
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: expected a new folder, or one that holds a {MANIFEST}; name another one or empty it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            new = Path(temporary) / "new"
            _fill(new, shipment)
            if out.exists():
                out.rename(Path(temporary) / "old")
            new.rename(out)
    except OSError as error:
        raise ArtefactError(f"{out}: cannot be written ({error}); free some space or name another folder") from error


def _fill(folder: Path, shipment: Shipment) -> None:
    for target, path in shipment.copies.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / target)
    for model in shipment.models:
        if sha256_file(folder / model.target) != model.digest:
            raise ArtefactError(f"{model.path}: changed while it was copied; run the same command again")
    for target, text in shipment.texts.items():
        path = folder / target
        path.touch(mode=0o600 if target == _PRIVATE else 0o666)
        path.write_text(text, encoding="utf-8")


def _check(name: str, image: str | None, replicas: int, cores: int) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: expected lower-case letters, digits and hyphens, a letter first, at most 58 of them"
        )
    if image is not None and not _IMAGE.fullmatch(image):
        raise UsageError(f"--image {image!r}: expected registry/path:tag, like ghcr.io/me/pocketzoo:1")
    if not 1 <= replicas <= 1000:
        raise UsageError(f"--replicas {replicas}: expected a number from 1 to 1000")
    if not 1 <= cores <= 256:
        raise UsageError(f"--cores {cores}: expected a number from 1 to 256")


def _digest(sources: Mapping[str, Path], models: Sequence[ShippedModel], requirements: str, engine: str) -> str:
    parts = {target: sha256_file(path) for target, path in sources.items()}
    parts |= {model.target: model.digest for model in models}
    lines = [f"{target} {digest}\n" for target, digest in sorted(parts.items())]
    return hashlib.sha256("".join([*lines, requirements, engine]).encode()).hexdigest()


def _manifest(name: str, image: str, models: Sequence[ShippedModel]) -> str:
    entries = [{key: value for key, value in asdict(model).items() if key != "path"} for model in models]
    return json.dumps({"name": name, "image": image, "commit": code_commit(), "models": entries}, indent=2) + "\n"
