"""What was trained: by layer where the card's settings lead to the number it recorded, else the number alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import nn

from tests.zoo.factories import TINY_VIT, make_card
from zoo.artefact.card import Card, LineageEntry
from zoo.explain.structure.trained_parameters import training_of
from zoo.networks.lora import add_lora
from zoo.networks.registry import build, classifier
from zoo.networks.stages import Freezing, trained_at

VIT = "vit_tiny_patch16_224"


def _model() -> nn.Module:
    return build(VIT, classes=3, channels=3, arguments=TINY_VIT)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _card(*stages: LineageEntry) -> Card:
    return dataclasses.replace(make_card(architecture=VIT, arguments=TINY_VIT), lineage=stages)


def _train(count: int, *, stage: str = "train", freeze: dict[str, Any] | None = None, **config: Any) -> LineageEntry:
    fit = {"epochs": 3, "freeze": dataclasses.asdict(Freezing()) | (freeze or {})}
    summary = {"trainable": count, "best_epoch": 2}
    return LineageEntry(stage=stage, config={"fit": fit} | config, parent=None, summary=summary)


def _stage(name: str) -> LineageEntry:
    return LineageEntry(stage=name, config={}, parent="0" * 64)


def test_everything() -> None:
    model = _model()
    found = training_of(model, _card(_train(_size(model))))
    assert found is not None
    assert found.names == {name for name, _ in model.named_parameters()}
    assert (found.stage, found.share, found.why) == ("train", 1.0, "")


@pytest.mark.parametrize("freeze", [{"stages": 1}, {"unfreeze": [0, 2]}, {"norms_only": True}])
def test_frozen_stages(freeze: dict[str, Any]) -> None:
    model = _model()
    settings = Freezing(**{key: tuple(value) if isinstance(value, list) else value for key, value in freeze.items()})
    names = trained_at(model, settings, 2)
    count = sum(model.get_parameter(name).numel() for name in names)
    assert count < _size(model)
    found = training_of(model, _card(_train(count, freeze=freeze)))
    assert found is not None
    assert found.names == names
    assert found.share == count / _size(model)


def test_adapters_apart_and_merged() -> None:
    model = _model()
    add_lora(model, targets=("qkv",), rank=2, alpha=4)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lora = {"targets": ["qkv"], "rank": 2, "alpha": 4.0}
    apart = training_of(model, _card(_train(count, lora=lora)))
    assert apart is not None
    assert apart.names is not None
    assert {name for name in apart.names if "lora" not in name} == {"head.weight", "head.bias"}
    merged = training_of(_model(), _card(_train(count, lora=lora), _stage("merge")))
    assert merged is not None
    assert (merged.count, merged.names) == (count, None)
    assert merged.share == count / _size(_model())
    assert "adapters, which were merged" in merged.why


def test_what_the_file_does_not_tell() -> None:
    model = _model()
    pruned = training_of(model, _card(_train(10**6), _stage("prune")))
    assert pruned is not None
    assert (pruned.count, pruned.names, pruned.share) == (10**6, None, None)
    assert "pruned after" in pruned.why
    masked = training_of(model, _card(_train(123, mask={"fraction": 0.01, "by": "fisher"})))
    assert masked is not None
    assert masked.names is None
    assert masked.share == 123 / _size(model)
    assert "single weights" in masked.why
    other = training_of(model, _card(_train(77)))
    assert other is not None
    assert other.names is None
    assert f"would train {_size(model):,} weights" in other.why


def test_settings_of_another_version_are_no_crash() -> None:
    model = _model()
    for freeze in ({"unknown": 1}, {"stages": 99}):
        found = training_of(model, _card(_train(77, freeze=freeze)))
        assert found is not None
        assert found.names is None
        assert "the recorded settings of the training cannot be used: " in found.why


def test_the_last_training_counts_if_its_weights_were_kept() -> None:
    model = _model()
    head = sum(parameter.numel() for parameter in classifier(model).parameters())
    first = _train(head, freeze={"stages": 1})
    recovered = training_of(model, _card(first, _stage("prune"), _train(_size(model), stage="recover")))
    assert recovered is not None
    assert (recovered.stage, recovered.count) == ("recover", _size(model))
    assert recovered.names is not None
    useless = dataclasses.replace(
        _train(_size(model), stage="recover"), summary={"trainable": _size(model), "best_epoch": 0}
    )
    kept = training_of(model, _card(first, _stage("prune"), useless))
    assert kept is not None
    assert (kept.stage, kept.count) == ("train", head)


def test_an_import_was_not_trained_here() -> None:
    assert training_of(_model(), _card(LineageEntry(stage="import", config={}, parent=None))) is None
