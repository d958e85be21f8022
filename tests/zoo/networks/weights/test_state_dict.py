"""The network inside others' files: wrappers, prefixes, several networks, labels."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.factories import make_card
from zoo.base.errors import ArtefactError
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.networks.weights.state_dict import read_state_dict, split_place

OWN = {"stem.weight": torch.Size([4, 3]), "stem.bias": torch.Size([4]), "fc.weight": torch.Size([2, 4])}


def _tensors(value: float = 1.0, prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": torch.full(shape, value) for name, shape in OWN.items()}


def _taken(path: Path, content: Any, place: str = "") -> tuple[float, str, tuple[str, ...]]:
    torch.save(content, path)
    found = read_state_dict(f"{path}#{place}" if place else str(path), OWN)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == OWN
    return found.tensors["stem.bias"][0].item(), found.place, found.notes


@pytest.mark.parametrize(
    "wrapper", ["state_dict", "model", "model_state_dict", "state_dict_ema", "net", "network", "student", "weights_1"]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "timm_model.", "model.net.body."])
def test_wrappers_and_prefixes_of_any_name(tmp_path: Path, wrapper: str, prefix: str) -> None:
    content = {
        wrapper: _tensors(2.0, prefix),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4, 3)}}, "param_groups": [{"lr": 0.1}]},
    }
    inside = prefix.replace("_orig_mod.", "").rstrip(".")
    place = f"{wrapper}.{inside}".rstrip(".")
    assert _taken(tmp_path / "w.pt", content) == (2.0, place, ())
    assert _taken(tmp_path / "w.pt", content[wrapper]) == (2.0, inside, ())
    assert _taken(tmp_path / "w.pt", {"checkpoint": content})[:2] == (2.0, f"checkpoint.{place}")


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("state_dict", "state_dict_ema"), "state_dict_ema"),
        (("model_ema", "model"), "model_ema"),
        (("ema", "net"), "ema"),
        (("student", "teacher"), "teacher"),
        (("best", "model"), "model"),
        (("first", "second"), "first"),
    ],
)
def test_of_two_networks_the_averaged_one_is_taken_and_the_other_named(
    tmp_path: Path, names: tuple[str, str], first: str
) -> None:
    path, other = tmp_path / "w.pt", next(name for name in names if name != first)
    content = {name: _tensors(float(name == first)) for name in names}
    note = f"{path} holds 2 networks: {first} is taken; --weights {path}#{other} takes the other"
    assert _taken(path, content) == (1.0, first, (note,))
    for name in names:
        assert _taken(path, content, name) == (float(name == first), name, ())


def test_two_networks_in_one_dictionary(tmp_path: Path) -> None:
    # As Lightning modules and DINO have them: told apart by prefixes.
    path = tmp_path / "last.ckpt"
    content = {"state_dict": _tensors(1.0, "model.") | _tensors(2.0, "model_ema.module.")}
    value, place, notes = _taken(path, content)
    assert (value, place) == (2.0, "state_dict.model_ema.module")
    assert notes == (f"{path} holds 2 networks: {place} is taken; --weights {path}#state_dict.model takes the other",)
    assert _taken(path, content, "state_dict.model")[0] == 1.0
    with pytest.raises(
        ArtefactError, match=r"last\.ckpt: unknown network in the file 'state_dict\.modl'; did you mean "
    ):
        read_state_dict(f"{path}#state_dict.modl", OWN)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module._orig_mod"])
def test_parts_that_were_compiled_or_wrapped_alone(tmp_path: Path, wrapper: str) -> None:
    tensors = {name.replace("stem.", f"stem.{wrapper}."): tensor for name, tensor in _tensors().items()}
    assert _taken(tmp_path / "w.pt", {"state_dict": tensors}) == (1.0, "state_dict", ())


def test_a_larger_teacher_is_not_taken_for_the_network(tmp_path: Path) -> None:
    teacher = {name: torch.zeros([8 * edge for edge in shape]) for name, shape in OWN.items()}
    assert _taken(tmp_path / "w.pt", {"student": _tensors(), "teacher": teacher})[:2] == (1.0, "student")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    content = {"state_dict": _tensors(1.0, "vit.") | {"criterion.weight": torch.ones(2), "n_averaged": torch.ones(())}}
    note = f"{path}: 2 tensor(s) beside the network are left out: state_dict.criterion.weight, state_dict.n_averaged"
    assert _taken(path, content) == (1.0, "state_dict.vit", (note,))
    content = {"backbone": _tensors(), "head": {"weight": torch.ones(1)}}
    assert _taken(path, content)[2] == (f"{path}: 1 tensor(s) beside the network are left out: head.weight",)


def test_other_names_lose_what_all_share(tmp_path: Path) -> None:
    torch.save(
        {"model": {f"module.model.{name}": torch.ones(2) for name in ("conv.weight", "bn.bias")}}, tmp_path / "w"
    )
    found = read_state_dict(str(tmp_path / "w"), OWN)
    assert (found.place, list(found.tensors)) == ("model.module.model", ["conv.weight", "bn.bias"])


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": 5}, {}, {"model": torch.nn.Linear(1, 1)}, 3])
def test_what_has_no_tensors_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ArtefactError, match=r"w\.pt: expected a dictionary of tensors, found the keys \[") as caught:
        read_state_dict(str(tmp_path / "w.pt"), OWN)
    if isinstance(content, dict) and "model" in content:
        assert "['model'], and Python objects (torch.nn.modules.linear.Linear) that are not run" in str(caught.value)


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": _tensors()}
    content["again"] = content
    assert _taken(tmp_path / "w.pt", content)[:2] == (1.0, "state_dict")


@pytest.mark.parametrize(
    "extra",
    [
        {"labels": ["cat", "dog"]},
        {"class_names": ("cat", "dog")},
        {"names": {0: "cat", 1: "dog"}},
        {"class_to_idx": {"dog": 1, "cat": 0}},
        {"id2label": {"1": "dog", "0": "cat"}},
        {"args": argparse.Namespace(classes=["cat", "dog"])},
        {"hyper_parameters": {"lr": 0.1, "idx_to_class": {0: "cat", 1: "dog"}}},
    ],
)
def test_lists_of_labels(tmp_path: Path, extra: dict[str, Any]) -> None:
    torch.save({"state_dict": _tensors()} | extra, tmp_path / "w.pt")
    assert read_state_dict(str(tmp_path / "w.pt"), OWN).labels == ("cat", "dog")


@pytest.mark.parametrize(
    "extra", [{}, {"labels": [0, 1]}, {"id2label": {0: "cat", 2: "dog"}}, {"classes": 2}, {"class_to_idx": ["cat"]}]
)
def test_what_is_no_list_of_labels(tmp_path: Path, extra: dict[str, Any]) -> None:
    torch.save({"state_dict": _tensors()} | extra, tmp_path / "w.pt")
    assert read_state_dict(str(tmp_path / "w.pt"), OWN).labels is None


def test_digits_are_labels_too(tmp_path: Path) -> None:
    torch.save({"state_dict": _tensors(), "class_to_idx": {"7": 0, "3": 1}}, tmp_path / "w.pt")
    assert read_state_dict(str(tmp_path / "w.pt"), OWN).labels == ("7", "3")


def test_labels_of_hugging_face_and_of_our_own_card(tmp_path: Path) -> None:
    save_file(_tensors(prefix="timm_model."), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["cat", "dog"], "architecture": "resnet18"}))
    assert read_state_dict(str(tmp_path / "model.safetensors"), OWN).labels == ("cat", "dog")
    model = build("lenet", classes=3, channels=1)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    card = make_card(("a", "b", "c"), stages=("train",))
    checkpoint.save(model, dataclasses.replace(card, name="own"), tmp_path / "own.safetensors")
    found = read_state_dict(str(tmp_path / "own.safetensors"), own)
    assert found.labels == ("a", "b", "c") and found.normalisation == ((0.5,) * 3, (0.25,) * 3)
    save_file(_tensors(), tmp_path / "odd.safetensors", metadata={"zoo.card": '{"schema": "zoo.card/9"}'})
    assert read_state_dict(str(tmp_path / "odd.safetensors"), OWN).labels is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]}, ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))),
        ({"mean": [0.5], "std": [0.25]}, ((0.5,), (0.25,))),
        ({"mean": [0.5]}, None),
        ({"mean": [0.5], "std": [0.0]}, None),
        ({"mean": "0.5", "std": [1.0]}, None),
        ([], None),
    ],
)
def test_normalisation_of_timms_configuration(tmp_path: Path, config: Any, expected: Any) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    assert read_state_dict(str(tmp_path / "model.safetensors"), OWN).normalisation == expected


def test_a_file_whose_name_has_a_number_sign(tmp_path: Path) -> None:
    torch.save(_tensors(), tmp_path / "run#3.pt")
    assert split_place(str(tmp_path / "run#3.pt")) == (tmp_path / "run#3.pt", "")
    assert split_place(f"{tmp_path}/run#3.pt#model") == (tmp_path / "run#3.pt", "model")
    assert split_place("w.pt") == (Path("w.pt"), "")
