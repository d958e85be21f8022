"""What an image is large by, and a container: for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serve.shipping.engine import OPENVINO
from serve.shipping.memory import Memory
from serve.shipping.requirements import PYTHON, installed_bytes, pinned_requirements
from zoo.artefact.engines.runtimes import REFERENCE
from zoo.base.errors import ArtefactError

__all__ = ["Sizes", "openvino_bytes", "told"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes."""

    models: int
    packages: int
    """Installed."""
    sources: int
    openvino: int | None
    """What its packages take, whether they are among `packages` or not; None where it is not installed."""

    @property
    def image(self) -> int:
        """Everything on top of the base image."""
        return self.models + self.packages + self.sources


def openvino_bytes() -> int | None:
    """What the second engine takes installed, in bytes; None: it is not installed here."""
    try:
        more = set(pinned_requirements([OPENVINO])) - set(pinned_requirements())
    except ArtefactError:
        return None
    return installed_bytes(sorted(more))


def told(sizes: Sizes, memory: Memory, models: int, engine: str) -> Iterator[str]:
    """A sentence each about the image, the other engine, and the memory of a container."""
    yield (
        f"image: {_mb(sizes.image)} on top of python:{PYTHON}-slim: {_mb(sizes.packages)} of packages, "
        f"{_mb(sizes.models)} of models ({models}), {_mb(sizes.sources)} of sources"
    )
    other = "a size unknown here, where it is not installed" if sizes.openvino is None else _mb(sizes.openvino)
    if engine == REFERENCE:
        yield f"engine: ONNX Runtime; --engine openvino would add {other}"
    else:
        yield f"engine: {engine}; of the packages OpenVINO has {other}, which --engine {REFERENCE} leaves out"
    yield (
        f"memory: {_mib(memory.request)} waiting (supervisor {_mib(memory.supervisor)}, "
        f"{memory.workers} worker x {_mib(memory.worker)}, {_mib(memory.models)} of it the models), measured here"
    )
    yield (
        f"limit: {_mib(memory.limit)}: a model being checked ({_mib(memory.check)}), {_mib(memory.decoding)} to decode "
        f"images, {_mib(memory.bodies)} of bodies for each worker, and a tenth more"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
