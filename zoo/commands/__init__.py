"""The commands that train and look at artefacts; importing this registers them."""

# ruff: noqa: I001 (the order is that of --help)
from zoo.commands import data, models, studies, training, adapters, forgetting, predict, evaluate
from zoo.commands.explain import training as training_page, predictions, attention, inside, structure

__all__ = [
    "adapters",
    "attention",
    "data",
    "evaluate",
    "forgetting",
    "inside",
    "models",
    "predict",
    "predictions",
    "structure",
    "studies",
    "training",
    "training_page",
]
