"""Which engine computes in the image, and what it needs there beside the server's own packages."""

from __future__ import annotations

from collections.abc import Sequence

from serve.shipping.models import ShippedModel
from zoo.artefact.engines.names import AUTO, REFERENCE, preference
from zoo.artefact.engines.runtimes import OTHERS

__all__ = ["OPENVINO", "engine_in_image"]

OPENVINO = "openvino"
"""The package of all engines but the reference."""


def engine_in_image(wanted: str, models: Sequence[ShippedModel]) -> tuple[str, tuple[str, ...]]:
    """POCKETZOO_ENGINE and the packages that it needs besides.

    Args:
        wanted: `auto`, a name of zoo.artefact.engines.runtimes, or several, separated by commas.
        models: what goes into the image; `auto` is ONNX Runtime alone if none has a golden answer of another engine.
    """
    names = preference(wanted)
    if names:
        return ",".join(names), (OPENVINO,) if set(names) & set(OTHERS) else ()
    if any(set(model.engines) & set(OTHERS) for model in models):
        return AUTO, (OPENVINO,)
    return REFERENCE, ()
