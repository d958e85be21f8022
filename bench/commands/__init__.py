"""The commands that measure artefacts; importing this registers them."""

from bench.commands import compare, load, measure, publish, report, scoring, serving, training

__all__ = ["compare", "load", "measure", "publish", "report", "scoring", "serving", "training"]
