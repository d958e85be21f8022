"""Names of the runtimes that compute a graph, without the runtimes: see zoo.artefact.engines.runtimes."""

from __future__ import annotations

from zoo.base.errors import UsageError, unknown_name

__all__ = ["AUTO", "NAMES", "REFERENCE", "preference"]

AUTO = "auto"
REFERENCE = "onnxruntime"
"""Always there: exports, quantization and golden answers are judged by it."""
NAMES = (REFERENCE, "openvino", "openvino-bf16")


def preference(text: str) -> tuple[str, ...]:
    """The engines that "auto", a name or names separated by commas mean, in their order; none: `auto`.

    Raises:
        UsageError: an unknown name, with close matches.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in (AUTO, *NAMES):
            raise unknown_name("engine", name, (AUTO, *NAMES))
    if AUTO in names[1:] or (AUTO in names and len(names) > 1):
        raise UsageError(f"engine {text!r}: `auto` chooses among all engines; name it alone, or only others")
    return () if names in ((), (AUTO,)) else names
