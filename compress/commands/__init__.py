"""The commands that make artefacts smaller and export them; importing this registers them."""

from compress.commands import chain, optimize, pretrained, prune, quantize

__all__ = ["chain", "optimize", "pretrained", "prune", "quantize"]
