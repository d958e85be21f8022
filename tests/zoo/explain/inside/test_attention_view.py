"""An image through the eyes of several networks: which label is explained, what the rows say, what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.zoo.factories import LABELS, TINY_VIT, encode, make_card, make_input
from tests.zoo.factories import picture as noise
from zoo.base.errors import ArtefactError, UsageError
from zoo.explain.inside import attention_view
from zoo.explain.inside.attention_maps import attention_maps
from zoo.explain.inside.attention_view import View, draw_views, views
from zoo.explain.inside.input_image import picture
from zoo.explain.panels import Panel
from zoo.networks import checkpoint
from zoo.networks.lora import add_lora
from zoo.networks.registry import build

PHOTO = encode(noise(3, 40, 48))


def make_vit(root: Path, name: str, labels: tuple[str, ...] = LABELS, *, seed: int = 0, colour: str = "RGB") -> Path:
    """A folder with a tiny vision transformer."""
    torch.manual_seed(seed)
    channels = 3 if colour == "RGB" else 1
    model = build("vit_tiny_patch16_224", classes=len(labels), channels=channels, arguments=TINY_VIT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    card = make_card(
        labels, architecture="vit_tiny_patch16_224", arguments=TINY_VIT, spec=make_input(32, colour=colour)
    )
    checkpoint.save(model, replace(card, name=name), root / name / "model.safetensors")
    return root / name


def test_each_row_is_that_networks_own(tmp_path: Path) -> None:
    folders = [make_vit(tmp_path, "one"), make_vit(tmp_path, "grey", seed=1, colour="L")]
    found = views(folders, PHOTO, label="dog")
    assert [one.name for one in found] == ["one", "grey"]
    for folder, one in zip(folders, found, strict=True):
        model, card = checkpoint.load(folder / "model.safetensors")
        inputs, image = picture(PHOTO, card)
        last = attention_maps(model, inputs)[-1][0]  # [heads, N, N]
        np.testing.assert_array_equal(one.heads, last[:, 0, 1:].reshape(3, 4, 4).numpy())
        assert np.array_equal(one.image, image) and one.image.shape == (32, 32, 3)
        with torch.no_grad():
            wanted = model(inputs)[0].softmax(dim=0)
        assert one.answer == LABELS[int(wanted.argmax())]
        assert one.probability == pytest.approx(float(wanted.max()), abs=1e-6)
        assert (one.block, one.blocks, one.explained, one.knows) == (1, 2, "dog", True)
    grey = found[1].image
    assert (grey[..., 0] == grey[..., 1]).all() and (found[0].image[..., 0] != found[0].image[..., 1]).any()


def test_a_label_is_explained_where_it_is_known(tmp_path: Path) -> None:
    folders = [make_vit(tmp_path, "one"), make_vit(tmp_path, "other", ("ant", "bee"), seed=2)]
    known, unknown = views(folders, PHOTO, label="hen")
    assert (known.explained, known.knows) == ("hen", True)
    assert (unknown.explained, unknown.knows) == (unknown.answer, False)
    hen, dog = (views(folders[:1], PHOTO, label=label)[0].gradient for label in ("hen", "dog"))
    assert np.array_equal(hen, known.gradient) and not np.array_equal(hen, dog)
    free = views(folders, PHOTO)
    assert all(one.explained == one.answer and one.knows for one in free)


def test_the_temperature_is_the_cards(tmp_path: Path) -> None:
    folder = make_vit(tmp_path, "one")
    sharp = views([folder], PHOTO)[0].probability
    model, card = checkpoint.load(folder / "model.safetensors")
    checkpoint.save(model, replace(card, use=replace(card.use, temperature=50.0)), folder / "model.safetensors")
    assert 1 / 3 < views([folder], PHOTO)[0].probability < sharp


def test_a_block_is_chosen(tmp_path: Path) -> None:
    folder = make_vit(tmp_path, "one")
    first, last = (views([folder], PHOTO, block=block)[0] for block in (0, 1))
    assert (first.block, last.block) == (0, 1) and not np.array_equal(first.heads, last.heads)
    assert np.array_equal(first.rollout, last.rollout)
    for block in (-1, 2):
        with pytest.raises(UsageError, match=f"--block {block}: one has the blocks 0 to 1"):
            views([folder], PHOTO, block=block)


def test_refusals_name_the_artefact(tmp_path: Path) -> None:
    folder = make_vit(tmp_path, "one")
    with pytest.raises(UsageError, match="unknown label 'hem'; did you mean hen"):
        views([folder], PHOTO, label="hem")
    lenet = tmp_path / "lenet" / "model.safetensors"
    checkpoint.save(build("lenet", classes=3, channels=3), make_card(), lenet)
    with pytest.raises(
        ArtefactError, match=r"lenet.model\.safetensors: LeNet has no attention .*`pocketzoo explain gradcam`"
    ):
        views([folder, lenet.parent], PHOTO)


def test_a_graph_is_seen_as_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_vit(tmp_path, "one")
    monkeypatch.setattr(attention_view, "checkpoint_for", lambda artefact: artefact.with_name("model.safetensors"))
    (one,) = views([folder / "model.int8.onnx"], PHOTO)
    assert one.name == "one"


def test_adapters_that_are_not_merged(tmp_path: Path) -> None:
    from zoo.artefact.card import Lora

    folder = make_vit(tmp_path, "one")
    model, card = checkpoint.load(folder / "model.safetensors")
    lora = Lora(rank=2, alpha=4.0, targets=("q", "v"))
    add_lora(model, targets=lora.targets, rank=2, alpha=4.0)
    path = folder / "lora.safetensors"
    checkpoint.save(model, replace(card, build=replace(card.build, lora=lora)), path)
    whole, adapted = views([folder, path], PHOTO)
    # New adapters change nothing.
    np.testing.assert_allclose(adapted.gradient, whole.gradient, atol=1e-6)
    assert adapted.name == "one lora.safetensors"


def _view(heads: int = 3, **changes: object) -> View:
    maps = np.random.default_rng(0).random((heads + 2, 4, 4), dtype=np.float32)
    fields: dict[str, object] = {
        "name": "one",
        "image": noise(1, 32, 32),
        "answer": "cat",
        "probability": 0.876,
        "explained": "dog",
        "asked": "dog",
        "read": "class token",
        "heads": maps[2:],
        "block": 1,
        "blocks": 2,
        "rollout": maps[0],
        "fusion": "mean",
        "gradient": maps[1],
    }
    return View(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What draw_views asks to be drawn."""
    found: dict[str, object] = {}
    monkeypatch.setattr(attention_view, "draw_panels", lambda path, rows, **rest: found.update(rest, rows=rows))
    return found


def _titles(drawn: dict[str, object]) -> list[list[str | None]]:
    rows: list[list[Panel | None]] = drawn["rows"]  # type: ignore[assignment]
    return [[panel.title.replace("\n", " ") if panel else None for panel in row] for row in rows]


def test_what_all_draws(drawn: dict[str, object]) -> None:
    unknown = _view(name="old", asked="dog", explained="cat", read="mean over patches", fusion="max", block=0)
    draw_views(Path("x.png"), [_view(), unknown], method="all", title="a.png")
    assert _titles(drawn) == [
        ["says cat at 88%", "mean of heads last block", "attention rollout 2 blocks", "gradient-weighted for dog"],
        [
            "says cat at 88%",
            "mean of heads block 0",
            "attention rollout 2 blocks, heads' max",
            "gradient-weighted for cat, its answer",
        ],
    ]
    assert drawn["row_titles"] == [
        "one\n4 x 4 patches\nclass token",
        "old\n4 x 4 patches\nmean over patches\nhas no label dog",
    ]
    assert drawn["heading"] == (
        "a.png: dark patches count least, yellow ones most; each map is scaled to its own largest value"
    )
    rows: list[list[Panel]] = drawn["rows"]  # type: ignore[assignment]
    one = _view()
    for panel, wanted in zip(rows[0][1:], [one.heads.mean(axis=0), one.rollout, one.gradient], strict=True):
        assert panel.overlay is not None and np.array_equal(panel.overlay, wanted)


def test_many_heads_take_several_rows(drawn: dict[str, object]) -> None:
    draw_views(Path("x.png"), [_view(heads=8), _view(heads=2)], method="heads", title="a.png")
    first, second, third = _titles(drawn)
    assert first[2:] == [f"head {number}" for number in range(6)]
    assert second == [None, None, "head 6", "head 7"]
    assert third[1:] == ["mean of heads last block", "head 0", "head 1"]
    assert [bool(title) for title in drawn["row_titles"]] == [True, False, True]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "title"), [("rollout", "attention rollout 2 blocks")])
def test_one_method(drawn: dict[str, object], method: str, title: str) -> None:
    draw_views(Path("x.png"), [_view()], method=method, title="a.png")
    assert [row[1:] for row in _titles(drawn)] == [[title]]


def test_a_map_without_contrast_says_so(drawn: dict[str, object]) -> None:
    draw_views(Path("x.png"), [_view(gradient=np.zeros((4, 4), np.float32))], method="gradient", title="a.png")
    assert _titles(drawn)[0][1] == "gradient-weighted for dog: the same everywhere"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown method 'roll-out'; did you mean rollout"):
        draw_views(Path("x.png"), [_view()], method="roll-out", title="a.png")


@pytest.mark.parametrize("method", ["all", "heads"])
def test_a_picture_is_written(tmp_path: Path, method: str) -> None:
    long = _view(heads=8, answer="black-and-tan coonhound of the north", name="a-name-that-does-not-end-soon")
    draw_views(tmp_path / "x.png", [_view(), long], method=method, title="a.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > 400 and image.height > 400
