"""The commands that measure artefacts; importing this registers them."""

# ruff: noqa: I001 (the order is that of --help)
from bench.commands import run, measure, report, compare, serving, start, load, scoring, training, race, publish

__all__ = ["compare", "load", "measure", "publish", "race", "report", "run", "scoring", "serving", "start", "training"]
