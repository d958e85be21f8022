"""An exponential moving average of a network's weights (Polyak & Juditsky 1992), kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """The average of every floating-point tensor of a state dict; whole numbers are copied.

    The decay of step n is min(decay, (1 + n) / (10 + n)), as timm's and TensorFlow's averages warm up, so that a short
    training is not dominated by where it began. (timm's ModelEmaV3 would take a module that a network has under several
    names, as CoaT has, into the average several times in each step.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the network in, as it is after a step; steps count from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
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
