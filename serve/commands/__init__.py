"""The commands that answer with artefacts; importing this registers them."""

from serve.commands import keys, score, ship

__all__ = ["keys", "score", "ship"]
