from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.zoo import factories
from zoo.artefact.preprocess import encode_png, preprocess
from zoo.explain.inside.input_image import picture


@pytest.mark.parametrize(("colour", "channels"), [("RGB", 3), ("L", 1)])
def test_a_picture_for_the_network_and_to_look_at(colour: str, channels: int) -> None:
    card = factories.make_card(spec=factories.make_input(32, colour))
    data = encode_png(factories.picture(1, 40, 50))
    inputs, shown = picture(data, card)
    assert inputs.shape == (1, channels, 32, 32)
    assert torch.equal(inputs[0], torch.from_numpy(preprocess(data, card.use.input)))
    assert (shown.shape, shown.dtype) == ((32, 32, 3), np.uint8)
    assert (channels == 3) == bool((shown[..., 0] != shown[..., 1]).any())
