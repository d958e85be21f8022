"""The page of a training: what it shows is what was fed, logged and answered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.zoo.factories import make_card, make_dataset, make_input, make_samples
from zoo.artefact.card import Input, LineageEntry
from zoo.base.errors import ArtefactError
from zoo.data.augment.pipeline import Augment
from zoo.data.decoded import DecodedImages, canvas
from zoo.explain import run_page
from zoo.explain.run_page import PAGE, draw_page, first_batch, try_page
from zoo.training.loop.fit import FitConfig, fit
from zoo.training.loop.state import LOG, write_log
from zoo.training.stage import Trained

VARIED = Augment(area=(0.5, 1.0), aspect=1.2, flip=True, rotate=20, noise=5)


class Watched(nn.Module):
    """A classifier that keeps what it is given in training."""

    def __init__(self, values: int, labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(values, labels)
        self.seen: list[torch.Tensor] = []

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        return self.head(images.flatten(1))


def make_trained(
    folder: Path,
    *,
    classes: int = 3,
    epochs: int = 2,
    colour: str = "RGB",
    size: int = 8,
    n: int = 60,
    config: FitConfig | None = None,
) -> Trained:
    labels = [f"label-{number}" for number in range(classes)]
    spec = make_input(size, colour)
    random = np.random.default_rng(0)
    validation = make_samples(n, classes, seed=1, size=size)
    truth = np.array([sample.label for sample in validation])
    answers = random.normal(size=(n, classes)).astype(np.float32)
    answers[np.arange(n), truth] += 2
    entry = LineageEntry(stage="train", config={}, parent=None, summary={"best_epoch": max(1, epochs - 1)})
    write_log(
        folder / LOG,
        [
            {
                "epoch": epoch,
                "lr": 1e-3,
                "loss": 3 / epoch,
                "validation_loss": 3.2 / epoch**0.7,
                "validation_top1": 1 - 0.8 / epoch**0.5,
                "seconds": 2.0,
            }
            for epoch in range(1, epochs + 1)
        ],
    )
    dataset = make_dataset(classes=classes)
    return Trained(
        folder=folder,
        card=dataclasses.replace(make_card(labels, spec=spec), lineage=(entry,)),
        config=config or FitConfig(epochs=epochs, batch_size=16, augment=VARIED),
        train=DecodedImages(make_samples(40, classes, size=size), canvas(spec)),
        dataset=dataclasses.replace(dataset, splits={**dataset.splits, "validation": validation}),
        answers=answers,
    )


@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
@pytest.mark.parametrize("augment", [VARIED, Augment(mixup=0.5), Augment()])
def test_the_first_batch_is_what_the_network_got(tmp_path: Path, augment: Augment, sampler: str) -> None:
    config = FitConfig(epochs=1, batch_size=16, seed=3, sampler=sampler, augment=augment, precision="float32")
    trained = make_trained(tmp_path, config=config)
    model = Watched(3 * 8 * 8, 3)
    validation = DecodedImages(make_samples(9, 3, seed=1), trained.card.use.input)
    spec: Input = trained.card.use.input
    fit(model, train=trained.train, validation=validation, spec=spec, config=config, folder=tmp_path, resume=False)
    inputs, targets = first_batch(trained)
    assert torch.equal(inputs, model.seen[0])
    assert len(inputs) == len(targets) == 16
    assert (targets.ndim == 2) == bool(augment.mixup)


@pytest.mark.parametrize(
    ("classes", "epochs", "colour", "augment"),
    [(2, 1, "RGB", VARIED), (102, 60, "L", Augment(mixup=0.5, cutmix=1.0)), (10, 60, "RGB", Augment())],
)
def test_pages_of_few_and_many(tmp_path: Path, classes: int, epochs: int, colour: str, augment: Augment) -> None:
    config = FitConfig(epochs=epochs, batch_size=16, augment=augment, layer_decay=0.75 if classes == 10 else 1.0)
    trained = make_trained(tmp_path, classes=classes, epochs=epochs, colour=colour, config=config, n=3 * classes)
    draw_page(tmp_path / PAGE, trained)
    with Image.open(tmp_path / PAGE) as page:
        width, height = page.size
        pixels = np.asarray(page.convert("RGB"))
    assert 1200 < width < 2600 and 700 < height < 2000
    assert (pixels < 250).any(axis=2).mean() > 0.05, "an empty page"


def test_visible_images_have_the_colours_of_the_files(tmp_path: Path) -> None:
    config = FitConfig(epochs=2, batch_size=40, augment=Augment())
    for colour, channels in (("RGB", 3), ("L", 1)):
        trained = make_trained(tmp_path, colour=colour, config=config)
        inputs, _ = first_batch(trained)
        shown = run_page._visible(inputs, trained.card.use.input).reshape(40, 8, 8, channels)
        stored = torch.stack([trained.train[place][0] for place in range(40)]).movedim(1, -1).numpy() / 255
        # In another order: each is one of the files.
        nearest = np.abs(shown[:, None] - stored[None]).max(axis=(2, 3, 4)).min(axis=1)
        assert nearest.max() < 1e-5


def test_a_mixed_image_has_both_labels() -> None:
    labels = ("cat", "dog", "hen")
    assert run_page._target(torch.tensor([0.3, 0.7, 0.0]), labels) == "70% dog\n30% cat"
    assert run_page._target(torch.tensor([0.0, 0.0, 1.0]), labels) == "hen"
    assert run_page._target(torch.tensor(1), labels) == "dog"


def test_what_goes_wrong_is_said_and_fails_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = make_trained(tmp_path)
    (tmp_path / LOG).write_text("no log\n")
    with pytest.raises(ArtefactError, match=r"log\.csv"):
        draw_page(tmp_path / PAGE, trained)
    try_page(trained)
    assert "training.png was not drawn: ArtefactError" in capsys.readouterr().err
    assert not (tmp_path / PAGE).exists()
