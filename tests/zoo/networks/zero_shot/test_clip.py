"""Which CLIPs there are, how their images are prepared, and their texts; nothing here is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.zoo.factories import encode, picture
from tests.zoo.networks.zero_shot.tiny import LABELS, TEXT, make_clip, register
from zoo.artefact.preprocess import decode, preprocess
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.zero_shot.clip import Texts, check_templates, find_clip, load_clip, load_texts, save_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("clips")
    register(found)
    return found


@pytest.mark.parametrize(
    ("name", "size", "rule", "kernel", "mean"),
    [
        ("ViT-B-32.openai", 224, "shorter", "bicubic", open_clip.OPENAI_DATASET_MEAN),
        ("ViT-L-14.laion2b_s32b_b82k", 224, "shorter", "bicubic", (0.5, 0.5, 0.5)),
        ("MobileCLIP-S1.datacompdr", 256, "shorter", "bilinear", (0.0, 0.0, 0.0)),
        ("PE-Core-T-16-384.meta", 384, "stretch", "bilinear", (0.5, 0.5, 0.5)),
    ],
)
def test_preprocessing_is_open_clips(name, size, rule, kernel, mean):
    full = name.replace("ViT-B-32.", "ViT-B-32-quickgelu.")
    spec = find_clip(full, "pretrained").input
    assert (spec.size, spec.resize.rule, spec.resize.filter, spec.mean) == ((size, size), rule, kernel, mean)
    config = open_clip.get_pretrained_cfg(*full.split("."))
    keys = ("mean", "std", "interpolation", "resize_mode")
    transform = open_clip.image_transform(size, is_train=False, **{key: config[key] for key in keys})
    data = encode(np.kron(picture(3, 30, 40), np.ones((12, 11, 1), dtype=np.uint8)))
    wanted = transform(Image.fromarray(np.asarray(decode(data).convert("RGB")))).numpy()
    np.testing.assert_allclose(preprocess(data, spec), wanted, rtol=0, atol=1e-5)


def test_a_file_of_weights_that_were_published_with_one_preprocessing_only(folder):
    assert find_clip("MobileCLIP-S1", "w.pt").input.std == (1.0, 1.0, 1.0)
    assert find_clip("tiny-vit", "w.pt").input.mean == open_clip.OPENAI_DATASET_MEAN
    assert find_clip("ViT-B/32", "w.pt").full_name == "ViT-B-32"
    assert find_clip("ViT-L-14.laion2b_s32b_b82k", "w.pt").full_name == "ViT-L-14.laion2b_s32b_b82k"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ViT-B-3", "w.pt", r"unknown CLIP model 'ViT-B-3'; did you mean .*ViT-B-32"),
        ("ViT-B-32.openay", "pretrained", "unknown tag of ViT-B-32 'openay'; did you mean openai"),
        ("ViT-B-32", "pretrained", r"--clip ViT-B-32 needs weights: --weights FILE .*ViT-B-32\.TAG.*openai"),
        ("tiny-vit", "pretrained", "--clip tiny-vit needs weights: .*; nobody published any"),
        ("ViT-B-32.openai", "pretrained", r"openai were trained with another activation .*ViT-B-32-quickgelu\.openai"),
        ("ViT-L-14", "w.pt", r"prepared otherwise for .*--clip ViT-L-14\.TAG --weights FILE"),
        ("ViT-B-16-SigLIP", "w.pt", "read by timm/ViT-B-16-SigLIP of Hugging Face's transformers"),
        ("coca_ViT-B-32", "w.pt", "a CoCa has a third tower"),
    ],
)
def test_names_that_are_refused(folder, name, weights, message):
    with pytest.raises(UsageError, match=message):
        find_clip(name, weights)


def test_files_that_are_refused(folder, tmp_path):
    clip = find_clip("tiny-vit", "w.pt")
    with pytest.raises(ArtefactError, match=r"no weights at gone\.pt; expected a checkpoint of open_clip for tiny-vit"):
        load_clip(clip, "gone.pt")
    make_clip("tiny-convnext", tmp_path / "w.pt")
    with pytest.raises(ArtefactError, match=r"w\.pt: expected a checkpoint of open_clip for tiny-vit: .*[Mm]issing"):
        load_clip(clip, str(tmp_path / "w.pt"))
    torch.save({"a": _Runs()}, tmp_path / "code.pt")
    with pytest.raises(ArtefactError, match=r"code\.pt: expected a checkpoint of open_clip"):
        load_clip(clip, str(tmp_path / "code.pt"))
    assert not _Runs.done


def test_a_download_is_said_and_its_failure_names_the_remedy(monkeypatch, capsys):
    asked = []

    def offline(name: str, pretrained: str) -> None:
        asked.append((name, pretrained))
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    clip = find_clip("ViT-B-32-quickgelu.openai", "pretrained")
    with pytest.raises(ArtefactError, match=r"cannot be had: no route to host; .*\.openai --weights FILE"):
        load_clip(clip, "pretrained")
    assert asked == [("ViT-B-32-quickgelu", "openai")]
    assert (
        "loads the weights of ViT-B-32-quickgelu.openai: from its cache, or else by a download"
        in capsys.readouterr().err
    )


class _Runs:
    done = False

    def __setstate__(self, _: object) -> None:
        _Runs.done = True

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ((), r"--template: expected at least one text with \{\}"),
        (("a photo",), r"--template 'a photo': expected one \{\} in the label's place, got 0"),
        (("{} and {}",), "got 2"),
    ],
)
def test_templates_that_are_refused(templates, message):
    with pytest.raises(UsageError, match=message):
        check_templates(templates)


def test_other_braces_in_templates_and_labels_are_texts(folder, tmp_path):
    clip = find_clip("tiny-vit", "w.pt")
    texts = Texts(model=make_clip("tiny-vit", tmp_path / "w.pt"), config=clip.config)
    weight, bias = texts.classifier(["{0.__class__}", "{x"], ["{x} {}"])
    assert weight.shape == (2, 24) and weight.isfinite().all() and not torch.equal(weight[0], weight[1])
    assert torch.equal(bias, torch.zeros(2))


def test_a_text_that_is_too_long_is_not_cut(folder, tmp_path):
    texts = Texts(model=make_clip("tiny-vit", tmp_path / "w.pt"), config=dict(find_clip("tiny-vit", "w.pt").config))
    with pytest.raises(UsageError, match="is 32 tokens, the text tower reads 20; shorten the label"):
        texts.classifier(["dog", "cat " * 30], ["{}"])


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-quickgelu", "tiny-token", "tiny-bias"])
def test_texts_come_back_from_their_file(folder, tmp_path, name):
    clip = find_clip(name, "w.pt")
    model = make_clip(name, tmp_path / "w.pt")
    save_texts(model, clip, tmp_path / "texts.safetensors")
    assert not [key for key in load_file(tmp_path / "texts.safetensors") if key.startswith("visual")]
    wanted = Texts(model=model, config=clip.config).classifier(LABELS, ["a photo of a {}"])
    found = load_texts(tmp_path / "texts.safetensors").classifier(LABELS, ["a photo of a {}"])
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert float(found[1][0]) == (-3.0 if name == "tiny-bias" else 0.0)


def test_files_of_texts_that_are_refused(folder, tmp_path):
    path = tmp_path / "texts.safetensors"
    with pytest.raises(ArtefactError, match=r"no texts\.safetensors in .*pocketzoo import --clip"):
        load_texts(path)
    path.write_bytes(b"junk")
    with pytest.raises(ArtefactError, match=r"texts\.safetensors: not a file of `pocketzoo import --clip`"):
        load_texts(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ArtefactError, match=r"expected `zoo\.texts` of the schema 'zoo\.texts/1', got None"):
        load_texts(path)
    save_texts(make_clip("tiny-vit", tmp_path / "w.pt"), find_clip("tiny-vit", "w.pt"), path)
    with safe_open(path, "pt") as stream:
        header = stream.metadata()
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if key != "ln_final.bias"}, path, metadata=header)
    with pytest.raises(ArtefactError, match=r"do not fit tiny-vit, like 'ln_final\.bias'"):
        load_texts(path)
    document = json.loads(header["zoo.texts"])
    document["config"]["text_cfg"] = TEXT | {"hf_model_name": "roberta-base"}
    save_file(tensors, path, metadata={"zoo.texts": json.dumps(document)})
    with pytest.raises(UsageError, match="read by roberta-base of Hugging Face's transformers"):
        load_texts(path)
