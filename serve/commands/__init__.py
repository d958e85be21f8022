"""The commands that answer with artefacts; importing this registers them."""

# ruff: noqa: I001 (the order is that of --help)
from serve.commands import score, ship, keys

__all__ = ["keys", "score", "ship"]
