"""The commands that make artefacts smaller and export them; importing this registers them."""

# ruff: noqa: I001 (the order is that of --help)
from compress.commands import pretrained, chain, prune, quantize, optimize, decoding

__all__ = ["chain", "decoding", "optimize", "pretrained", "prune", "quantize"]
