"""Files of weights by others: read, or refused in a sentence; nothing of theirs runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import json
import os
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zoo.base.errors import ArtefactError
from zoo.networks.weights.foreign import attributes, read_content


class _Settings(dict):
    """As yacs, EasyDict and Lightning have them."""


class _Config:
    """As OmegaConf's: attributes that hold dictionaries."""

    def __init__(self) -> None:
        self.content = _Settings(lr=0.1)


class _Slots:
    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 0.1


class _Mode(enum.Enum):
    MAX = "max"


HARMLESS = {
    "argparse": argparse.Namespace(lr=0.1),
    "array": np.arange(3),
    "class": torch.optim.SGD,
    "configuration": _Config(),
    "date": datetime.datetime(2026, 1, 1),
    "defaultdict": collections.defaultdict(list, lr=0.1),
    "deque": collections.deque([1.0], maxlen=3),
    "dictionary": _Settings(lr=0.1),
    "enumeration": _Mode.MAX,
    "function": functools.partial(max, 1),
    "module": nn.Linear(1, 1),
    "namespace": types.SimpleNamespace(lr=0.1),
    "path": pathlib.PurePosixPath("runs/1"),
    "random state": np.random.RandomState(0).get_state(),
    "range": range(3),
    "scalar": np.float32(0.5),
    "slots": _Slots(),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_objects_become_placeholders(tmp_path: Path, kind: str, zipped: bool) -> None:
    if kind == "module" and not zipped:
        pytest.skip("torch stored the source of modules before 1.6, and refuses that now")
    content = {"state_dict": {"weight": torch.ones(2)}, "extra": HARMLESS[kind]}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_content(tmp_path / "w.pt")
    assert torch.equal(found.items["state_dict"]["weight"], torch.ones(2))
    extra = found.items["extra"]
    assert type(extra) in (collections.Counter, list, tuple) or extra.__class__.__module__ in (
        "zoo.networks.weights.foreign",
        "builtins",
    )
    if kind in ("argparse", "defaultdict", "dictionary", "namespace", "slots"):
        assert attributes(extra) == {"lr": 0.1}
    if kind == "configuration":
        assert attributes(attributes(extra)["content"]) == {"lr": 0.1}
        assert f"{__name__}._Config" in found.classes


class _Trap:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def _eval(path: Path) -> _Trap:
    return _Trap(eval, f"__import__('pathlib').Path({str(path)!r}).touch()")


def _system(path: Path) -> _Trap:
    return _Trap(os.system, f"touch {path}")


def _method(path: Path) -> _Trap:
    return _Trap(Path.touch, path)


def _nested(path: Path) -> _Trap:
    return _Trap(functools.partial, Path.touch, path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("trap", [_eval, _system, _method, _nested])
def test_nothing_in_a_file_is_executed(tmp_path: Path, trap: Any, zipped: bool) -> None:
    executed, path = tmp_path / "executed", tmp_path / "w.pt"
    torch.save({"w": torch.ones(1), "args": trap(executed)}, path, _use_new_zipfile_serialization=zipped)
    try:
        found = read_content(path)
    except ArtefactError as error:
        assert "without executing code: it holds" in str(error)
        assert trap in (_system, _method)
    else:
        assert trap in (_eval, _nested) and torch.equal(found.items["w"], torch.ones(1))
    assert not executed.exists()
    if trap is not _nested:  # which only makes a function
        torch.load(path, weights_only=False)
        assert executed.exists(), "the trap itself must work"


@pytest.mark.parametrize("name", ["w.safetensors", "pytorch_model.bin", "w.pt"])
def test_the_content_tells_what_a_file_is(tmp_path: Path, name: str) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / name, metadata={"format": "pt"})
    found = read_content(tmp_path / name)
    assert torch.equal(found.items["weight"], torch.ones(2))
    assert found.metadata["format"] == "pt" and found.classes == ()


@pytest.mark.parametrize(("text", "expected"), [('{"id2label": {"0": "cat"}}', {"id2label": {"0": "cat"}}), ("[", {})])
def test_hugging_faces_configuration_beside_the_file(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(text)
    for name in ("pytorch_model.bin", "w.pt"):
        torch.save({"weight": torch.ones(2)}, tmp_path / name)
    assert read_content(tmp_path / "pytorch_model.bin").metadata == expected
    assert read_content(tmp_path / "w.pt").metadata == {}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx"])
@pytest.mark.parametrize(
    "content",
    [b"", b"i am text", bytes(range(100, 200)), b"\x08\x0a", pickle.dumps([1, 2])],
    ids=["nothing", "text", "bytes", "onnx", "pickle"],
)
def test_other_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"it is neither a safetensors file nor a state dict of torch\.save; exp"):
        read_content(path)


def test_files_cut_short(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(20)}, tmp_path / "a")
    torch.save({"weight": torch.ones(20)}, tmp_path / "b")
    for name in "ab":
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - 30])
        with pytest.raises(ArtefactError, match=f"{name}: not a state dict that can be read without executing code"):
            read_content(tmp_path / name)


def test_what_torch_refuses_is_said_in_a_sentence(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(ArtefactError, match=r"written with another pickle protocol than torch\.save's own, 2"):
        read_content(tmp_path / "w.pt")
    with pytest.warns(FutureWarning, match="deprecated"):
        program = torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1))
    program.save(tmp_path / "s.pt")
    with pytest.raises(ArtefactError, match="it is a TorchScript archive"):
        read_content(tmp_path / "s.pt")
    with pytest.raises(ArtefactError, match=r"is a folder; expected the file of the weights, like .*model\.safetens"):
        read_content(tmp_path)
    with pytest.raises(ArtefactError, match=r"no weights at .*gone\.pt; expected `none`, `pretrained` or the path"):
        read_content(tmp_path / "gone.pt")


def test_json_is_no_configuration_where_it_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([1]))
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_content(tmp_path / "model.safetensors").metadata == {}
