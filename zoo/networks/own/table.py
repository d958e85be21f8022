"""The table of our own networks, which their modules fill when they are imported."""

from __future__ import annotations

from collections.abc import Callable

import timm
from torch import nn

__all__ = ["OWN", "Builder", "register"]

Builder = Callable[..., nn.Module]
OWN: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Register a builder `(classes, channels, **arguments) -> nn.Module` under `name`."""

    def decorate(builder: Builder) -> Builder:
        if name in OWN or timm.is_model(name):
            raise ValueError(f"the model name {name!r} is taken")
        OWN[name] = builder
        return builder

    return decorate
