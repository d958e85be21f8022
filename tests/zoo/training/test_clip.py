"""CLIP's image tower with embedded labels, against open_clip's own zero-shot scores, on a tiny random network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.conftest import run_cli
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.checkpoint import load
from zoo.training.clip import Source, ZeroShot, import_clip, label_embeddings

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
LABELS = ("cat", "dog", "coffee cup")
TEMPLATES = ("a photo of a {}", "a drawing of a {}")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("clip")
    for name, changes in {"tiny-clip": {}, "tiny-quick": {"quick_gelu": True}}.items():
        (folder / f"{name}.json").write_text(json.dumps(CONFIG | changes))
    odd = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"layers": [1, 1, 1, 1], "image_size": 64}}
    (folder / "tiny-resnet.json").write_text(json.dumps(odd))
    open_clip.add_model_config(folder)
    return Source(name="tiny-clip", weights=_weights("tiny-clip", folder), templates=TEMPLATES)


def _weights(name: str, folder: Path) -> str:
    torch.manual_seed(0)
    network = open_clip.create_model(name, pretrained=None)
    torch.save(network.state_dict(), folder / f"{name}.pt")
    return str(folder / f"{name}.pt")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "pets.txt").write_text("\n".join(LABELS))
    return tmp_path / "pets.txt"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def _scores(source: Source, labels: tuple[str, ...], photo: Path) -> torch.Tensor:
    """What open_clip itself says of an image."""
    network, _, preprocess = open_clip.create_model_and_transforms(source.name, pretrained=source.weights)
    tokenize = open_clip.get_tokenizer(source.name)
    with torch.no_grad():
        image = network.eval().encode_image(preprocess(Image.open(photo).convert("RGB"))[None], normalize=True)
        texts = [
            network.encode_text(tokenize([template.format(label) for template in source.templates]), normalize=True)
            for label in labels
        ]
        means = torch.nn.functional.normalize(torch.stack([text.mean(dim=0) for text in texts]), dim=-1)
        return (network.logit_scale.exp() * image @ means.T).softmax(dim=1)[0]


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-quick"])
def test_scores_are_those_of_open_clip(clip: Source, words: Path, photo: Path, tmp_path: Path, name: str) -> None:
    source = Source(name=name, weights=_weights(name, tmp_path), templates=TEMPLATES)
    out = tmp_path / "output" / "pets"
    options = ["--weights", source.weights, "--labels", words, "--out", out]
    templates = [part for template in TEMPLATES for part in ("--template", template)]
    assert run_cli("import", name, "--clip", *options, *templates).exit_code == 0
    wanted = _scores(source, LABELS, photo)
    (found,) = Predictor(out / "model.onnx").predict([photo.read_bytes()], top=3)
    assert dict(zip(found.labels, found.probabilities, strict=True)) == pytest.approx(
        dict(zip(LABELS, wanted.tolist(), strict=True)), abs=2e-3
    )
    card = read_card(out / "model.onnx")
    assert card.use.labels == LABELS
    assert (card.use.input.size, card.use.input.resize.filter) == ((32, 32), "bicubic")
    other = ("tree", "house")
    done = run_cli("predict", out, photo, "--labels", "tree, house", "--json")
    said = {entry["label"]: entry["probability"] for entry in json.loads(done.stdout)["labels"]}
    assert said == pytest.approx(dict(zip(other, _scores(source, other, photo).tolist(), strict=True)), abs=2e-3)


def test_it_is_an_ordinary_artefact(clip: Source, words: Path, tmp_path: Path) -> None:
    path = tmp_path / "pets" / "model.safetensors"
    card = import_clip(clip, words, path)
    before = path.read_bytes()
    assert import_clip(clip, words, path) == card and path.read_bytes() == before, "it is there already"
    model, again = load(path)
    assert again == card
    images = torch.randn(3, *card.use.input.shape)
    loss = torch.nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 1, 2]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_cannot_be(clip: Source, words: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown CLIP 'tiny-clop'; did you mean tiny-clip"):
        Source(name="tiny-clop", weights="x")
    with pytest.raises(UsageError, match=r"expected one \{\} where the label goes"):
        Source(name="tiny-clip", weights="x", templates=("a photo",))
    with pytest.raises(UsageError, match=r"unknown file or tag of tiny-clip 'gone\.pt'"):
        Source(name="tiny-clip", weights="gone.pt").network()
    with pytest.raises(UsageError, match="no weights for tiny-clip"):
        Source(name="tiny-clip", weights="pretrained").network()
    with pytest.raises(ArtefactError, match="of tiny-clip cannot be used"):
        Source(name="tiny-clip", weights=str(words)).network()
    resnet = Source(name="tiny-resnet", weights=_weights("tiny-resnet", tmp_path))
    with pytest.raises(UsageError, match="is a ModifiedResNet; expected a vision transformer"):
        import_clip(resnet, words, tmp_path / "resnet" / "model.safetensors")
    with pytest.raises(UsageError, match="was not made by"):
        ZeroShot(tmp_path, ["a", "b"])
    import_clip(clip, words, tmp_path / "pets" / "model.safetensors")
    with pytest.raises(UsageError, match="expected different labels"):
        ZeroShot(tmp_path / "pets", ["cat", " "])


def test_texts_are_embedded_by_the_same_weights_or_not_at_all(clip: Source, words: Path, tmp_path: Path) -> None:
    weights = Path(_weights("tiny-clip", tmp_path))
    import_clip(Source(name="tiny-clip", weights=str(weights)), words, tmp_path / "pets" / "model.safetensors")
    ZeroShot(tmp_path / "pets", ["a", "b"])
    torch.manual_seed(1)
    torch.save(open_clip.create_model("tiny-clip", pretrained=None).state_dict(), weights)
    with pytest.raises(ArtefactError, match="no longer the file"):
        ZeroShot(tmp_path / "pets", ["a", "b"])


def test_embeddings_have_the_length_of_the_scale(clip: Source) -> None:
    network = clip.network()
    lengths = label_embeddings(network, clip, LABELS).norm(dim=1)
    assert lengths.tolist() == pytest.approx([network.logit_scale.exp().item()] * 3, rel=1e-4)
