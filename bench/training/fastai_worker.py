"""fastai's `fine_tune` as its tutorial has it, one line per epoch: `python -m bench.training.fastai_worker PLACES HOW`.

Started by bench.training.racer; both arguments are JSON, see bench.training.contestants.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def train(folder: str, weights: str, how: dict[str, Any]) -> None:
    """Fine-tune a network of timm's.

    Args:
        folder: has train/CLASS/* and validation/CLASS/*.
        weights: of the network, in timm's names; its classifier is replaced by fastai's head.
        how: model, size, batch, epochs (those with a frozen body included), threads, seed, and `fine_tune`: its
            arguments.
    """
    from fastai.vision.all import (
        Callback,
        ImageDataLoaders,
        Resize,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    class Report(Callback):  # type: ignore[misc]
        """Says what validation found."""

        order = 60  # after the recorder

        def after_epoch(self) -> None:
            self.done = getattr(self, "done", 0) + 1
            print(f"epoch {self.done}: validation top-1 {100 * self.recorder.values[-1][-1]:.6f}%", flush=True)

    set_seed(how["seed"])
    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="validation",
        bs=how["batch"],
        num_workers=how["threads"],
        item_tfms=Resize(how["size"]),
        batch_tfms=aug_transforms(size=how["size"]),
    )
    learner = vision_learner(
        loaders, how["model"], metrics=accuracy, pretrained_cfg_overlay={"file": weights, "num_classes": -1}
    )
    frozen = int(how["fine_tune"].pop("freeze_epochs", 1))
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(how["epochs"] - frozen, freeze_epochs=frozen, cbs=Report(), **how["fine_tune"])


if __name__ == "__main__":
    places = json.loads(sys.argv[1])
    train(places["folder"], places["weights"], json.loads(sys.argv[2]))
