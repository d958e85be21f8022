"""The proof itself: what masking does to a network, and that a wrong coupling does not pass."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

from compress.prune.cutting import Structure
from compress.prune.masking import mask
from compress.prune.proof import provable
from zoo.base.errors import ArtefactError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_masked_channels_are_nothing_and_norms_leave_them_out() -> None:
    model = _net().eval()
    structure = Structure(model, torch.zeros(1, 4))
    inputs = torch.rand(2, 4)
    first = model[0](inputs)
    wanted = nn.functional.layer_norm(first[:, [0, 2, 3, 5]], [4])
    with torch.no_grad():
        mask(model, structure.cuts, {structure.parts[0]: [1, 4]})
    found = model[1](model[0](inputs))
    assert torch.allclose(found[:, [0, 2, 3, 5]], wanted, atol=1e-6)
    assert found[:, [1, 4]].abs().max() == 0
    assert model[0].weight[[1, 4]].abs().max() == model[0].bias[[1, 4]].abs().max() == 0
    assert model[3].weight[:, [1, 4]].abs().max() == 0
    assert model[0].weight.shape == (6, 4) and model[1].normalized_shape == (6,)


@pytest.mark.parametrize("channels", [(1, 0, 3, 2, 5, 4), (1, 2, 3, 4, 5, 0), (5, 4, 3, 2, 1, 0)])
def test_channels_followed_to_the_wrong_place_are_found(channels: tuple[int, ...]) -> None:
    structure = Structure(_net(), torch.zeros(1, 4))
    part = structure.parts[0]
    cuts = structure.cuts(part)
    (reader,) = (cut for cut in cuts if (cut.path, cut.name) == ("3", "in"))
    cuts[cuts.index(reader)] = dataclasses.replace(reader, channels=channels)
    proved, (wrong,) = provable(structure, structure.parts, (4,))
    assert [found.name for found in proved] == ["3"] and wrong.layer == "0"
    assert re.fullmatch(
        r"removing hidden units is not the same as masking them \(the answers differ .*\), so .*", wrong.reason
    )


def test_a_forgotten_layer_is_found() -> None:
    structure = Structure(_net(), torch.zeros(1, 4))
    cuts = structure.cuts(structure.parts[1])
    del cuts[1]
    proved, (wrong,) = provable(structure, structure.parts, (4,))
    assert [found.name for found in proved] == ["0"] and wrong.layer == "3"
    assert "is not the same as masking them (RuntimeError" in wrong.reason


def test_units_that_no_answer_depends_on_prove_nothing() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(inputs)) * 0

    with pytest.raises(ArtefactError, match="its answers do not depend on them"):
        Structure(Deaf(), torch.zeros(1, 4))
