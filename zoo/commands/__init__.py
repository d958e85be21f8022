"""The commands that train and look at artefacts; importing this registers them."""

from zoo.commands import adapters, data, decoding, evaluate, forgetting, models, predict, studies, training
from zoo.commands.explain import attention, inside, predictions, structure

__all__ = [
    "adapters",
    "attention",
    "data",
    "decoding",
    "evaluate",
    "forgetting",
    "inside",
    "models",
    "predict",
    "predictions",
    "structure",
    "studies",
    "training",
]
