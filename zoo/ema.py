"""An exponential moving average of a network's weights (Polyak & Juditsky 1992), kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zoo.errors import UsageError

__all__ = ["Average"]


class Average:
    """The average of every floating-point tensor of a state dict; whole numbers are copied.

    The decay of step n is min(decay, (1 + n) / (10 + n)), as timm's and TensorFlow's averages warm up, so that a short
    training is not dominated by where it began.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"train.ema must be a decay in (0, 1) like 0.999, or 0 for none; got {decay}")
        self.decay = decay
        self.steps = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step of the network in."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        state = model.state_dict()
        moving = [name for name, tensor in self.state.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in moving], [state[n] for n in moving], 1 - decay)
        for name in self.state.keys() - set(moving):
            self.state[name].copy_(state[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The network with the averaged weights, meanwhile."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
