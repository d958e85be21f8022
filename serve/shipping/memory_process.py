"""Loads models as a worker of the server does, and says what that took: run by :mod:`serve.shipping.memory`."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from serve.models.model import load_model
from serve.service import Classifier
from zoo.base.machine import peak_bytes

__all__ = ["main"]


def main() -> None:
    """Read what to load as JSON from standard input, and print the most bytes resident after each step as JSON."""
    job = json.load(sys.stdin)
    Classifier.to_asgi()  # type: ignore[attr-defined]  # BentoML's decorator makes it a service
    peaks, models = [peak_bytes()], []
    slots = int(job["slots"])
    with ThreadPoolExecutor(slots) as callers:
        for path in job["paths"]:
            model = load_model(path, Path(path), threads=job["threads"], callers=slots, engine=job["engine"])
            models.append(model)
            images = np.zeros((1, *model.card.use.input.shape), np.float32)
            shared = model.shared
            list(callers.map(shared.logits, [images] * 4 * slots))
            peaks.append(peak_bytes())
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
