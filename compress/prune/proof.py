"""The proof that removing channels computes what masking them does; see `cutting`.

Two copies of a network get the same random weights: one loses about half of the units of every part, in the other the
same channels are masked (`masking`). A coupling that was missed, or followed to the wrong channels, makes their answers
differ or the cut one fail. Only an exchange of channels that all go, or all stay, shows in neither: no view, slice or
concatenation is so small.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compress.prune.couplings import REMEDY, Kept, Part
from compress.prune.masking import mask
from zoo.base.errors import ArtefactError
from zoo.base.machine import give_back_freed_memory

if TYPE_CHECKING:
    from compress.prune.cutting import Structure

__all__ = ["one_thread", "provable", "randomize"]

_TOLERANCE = 1e-4
"""Of what masking changes in the answers. Right couplings differ by rounding (1e-12, or 1e-6 where a layer computes in
float32), wrong ones by shares of 1."""


def provable(structure: Structure, parts: Sequence[Part], shape: Sequence[int]) -> tuple[list[Part], list[Kept]]:
    """Those parts that can be removed together, and the others with what removing them does.

    All are tried at once; where that fails, halves of them beside what is proved already, down to single parts.

    Args:
        structure: nothing of it was removed yet; stays as it is.
        parts: of it.
        shape: of one input, without the batch.

    Raises:
        ArtefactError: the network does not run in double precision.
    """
    wrong: list[Kept] = []
    if not parts:
        return [], wrong
    with one_thread():
        proof = _Proof(structure, shape)
        proved = _admit(proof, [], list(parts), wrong)
    return proved, wrong


def _admit(proof: _Proof, proved: list[Part], parts: list[Part], wrong: list[Kept]) -> list[Part]:
    how = proof.difference([*proved, *parts])
    if how is None:
        return [*proved, *parts]
    if len(parts) == 1:
        part = parts[0]
        reason = f"removing {part.kind}s is not the same as masking them ({how}), so a coupling was missed"
        wrong.append(Kept(layer=part.name, reason=reason))
        return proved
    half = len(parts) // 2
    return _admit(proof, _admit(proof, proved, parts[:half], wrong), parts[half:], wrong)


class _Proof:
    """A network with random weights, whose answers with and without units are compared."""

    def __init__(self, structure: Structure, shape: Sequence[int]) -> None:
        self._structure = structure
        self._model = copy.deepcopy(structure.model).eval()
        randomize(self._model)
        # What it was before, and the copy whose dependency graph points back at it.
        give_back_freed_memory()
        generator = torch.Generator().manual_seed(1)
        device = next(self._model.parameters()).device
        self._images = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(device)
        try:
            # Of a copy: networks keep what they computed in evaluation.
            self._before = self._answers(copy.deepcopy(self._model))
        except Exception as error:  # what a network does in double precision is open
            raise ArtefactError(
                f"{type(structure.model).__name__} cannot be pruned: it does not run in double precision, so that "
                f"nothing can be proved of it ({type(error).__name__}: {error}); {REMEDY}"
            ) from error

    def difference(self, parts: Sequence[Part]) -> str | None:
        """How the network without half of each part differs from one with them masked; None: not at all."""
        choose = random.Random(0)
        # An odd number, so that channels that were taken for each other's neighbours never all go in pairs.
        doomed = {part: choose.sample(range(len(part.units)), max(1, (len(part.units) // 2 - 1) | 1)) for part in parts}
        masked = copy.deepcopy(self._model)
        with torch.no_grad():
            mask(masked, self._structure.cuts, doomed)
        wanted = self._answers(masked)
        # In double precision each copy takes twice as much memory as the network.
        del masked
        cut = self._structure.of(copy.deepcopy(self._model))
        try:
            for part, units in doomed.items():
                cut.remove(part, units)
            cut.finish()
            found = self._answers(cut.model)
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        if found.shape != wanted.shape:
            return f"answers of shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
        effect = (self._before - wanted).abs().max()
        if not effect > 1e-12 * self._before.abs().max():
            return "its answers do not depend on them"
        share = float((found - wanted).abs().max() / effect)
        return None if share <= _TOLERANCE else f"the answers differ by {share:.1g} of the effect"

    def _answers(self, model: nn.Module) -> torch.Tensor:
        """All outputs side by side: [B, ...]."""
        with torch.no_grad():
            outputs = pytree.tree_leaves(model(self._images))
        return torch.cat([output.flatten(1) for output in outputs if isinstance(output, torch.Tensor)], dim=1)


def randomize(model: nn.Module) -> None:
    """Weights of float64 that let every channel count: a network as it is built or trained has zeros in places."""
    generator = torch.Generator().manual_seed(0)
    model.double()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("running_mean", "bias")):
                tensor.copy_(0.3 * values)
            elif name.endswith("running_var") or (isinstance(tensor, nn.Parameter) and tensor.ndim < 2):
                tensor.copy_(1 + 0.5 * values.tanh())
            elif isinstance(tensor, nn.Parameter):
                tensor.copy_(values * (len(tensor) / tensor.numel()) ** 0.5)


@contextmanager
def one_thread() -> Iterator[None]:
    """Many small layers: on a busy machine, threads that wait for each other make them ten times as slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
