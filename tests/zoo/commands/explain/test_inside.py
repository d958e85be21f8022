from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.prune.stage import prune
from tests.conftest import run_cli
from tests.zoo.factories import make_card, make_dataset, make_input, picture
from zoo.artefact.preprocess import encode_png
from zoo.base.errors import DataError, UsageError
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.training.recipe import PruneConfig


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned LeNet for grey images, beside two of them."""
    root = tmp_path_factory.mktemp("inside")
    torch.manual_seed(0)
    card = make_card(spec=make_input(28, "L"), stages=("train",))
    checkpoint.save(build("lenet", classes=3, channels=1), card, root / "whole" / "model.safetensors")
    folder = root / "lenet"
    settings = PruneConfig(macs=0.6, round_to=2)
    prune(root / "whole" / "model.safetensors", folder / "model.safetensors", settings, dataset=make_dataset())
    for name in ("a", "b"):
        (root / f"{name}.png").write_bytes(encode_png(picture(ord(name), 40, 30)))
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["filters"],
        ["features", "a.png", "--layer", "features.3"],
        ["guided", "a.png", "--layer", "features.4", "--most", "2"],
        ["guided", "a.png", "--layer", "head", "--units", "0,2"],
        ["gradcam", "a.png", "b.png", "--label", "dog"],
    ],
)
def test_draws_a_page_of_a_pruned_network(artefact: Path, tmp_path: Path, arguments: list[str]) -> None:
    command, *rest = [str(artefact.parent / word) if word.endswith(".png") else word for word in arguments]
    out = tmp_path / "page.png"
    assert run_cli("explain", command, artefact, *rest, "--out", out).output.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_writes_below_the_artefact_unless_told_otherwise(artefact: Path) -> None:
    run_cli("explain", "filters", artefact)
    assert (artefact / "explain" / "filters.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["features", "a.png", "--layer", "feature.3"], UsageError, r"did you mean features\.3"),
        (
            ["guided", "a.png", "--layer", "head", "--units", "3"],
            UsageError,
            "no unit 3, expected a number from 0 to 2",
        ),
        (["guided", "a.png", "--layer", "head", "--units", "x"], UsageError, "--units x: expected whole numbers"),
        (["gradcam", "a.png", "--label", "dgo"], UsageError, "unknown label 'dgo'; did you mean dog"),
        (["gradcam", "none.png"], UsageError, "there is no image at .*none.png"),
        (["features", ".", "--layer", "head"], UsageError, "is a folder, expected one image file"),
        (["gradcam", "lenet/model.safetensors"], DataError, "name another image"),
    ],
)
def test_says_what_is_wrong(artefact: Path, arguments: list[str], error: type[Exception], message: str) -> None:
    command, image, *rest = arguments
    with pytest.raises(error, match=message):
        run_cli("explain", command, artefact, artefact.parent / image, *rest)
