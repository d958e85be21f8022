"""Tests of compress.recover."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress import recover as module
from compress.recover import distillation, features_read, recover, similarity_loss
from tests.zoo.factories import make_card, make_dataset, make_input
from zoo.artefact.card import Metrics
from zoo.base.errors import UsageError
from zoo.networks import checkpoint
from zoo.networks.checkpoint import read_card, save
from zoo.networks.registry import build, last_layers
from zoo.training.loop.config import FitConfig
from zoo.training.loop.fit import EpochResult, fit
from zoo.training.loop.state import STATE
from zoo.training.recipe import RecoverConfig


def example() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.randn(5, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])


def test_distillation_is_the_formula() -> None:
    teacher, inputs, logits, labels = example()
    loss = distillation(teacher, RecoverConfig(distill=0.7, temperature=2.0))(inputs, logits, labels)
    wanted, given = (teacher(inputs) / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (wanted * (wanted / given).log()).sum(1).mean()
    assert loss.item() == pytest.approx((0.3 * functional.cross_entropy(logits, labels) + 0.7 * 4 * divergence).item())


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher, inputs, _, labels = example()
    logits = teacher(inputs).detach()
    assert distillation(teacher, RecoverConfig(distill=1.0))(inputs, logits, labels).item() == pytest.approx(
        0, abs=1e-6
    )


def test_without_distillation_it_is_cross_entropy() -> None:
    teacher, inputs, logits, labels = example()
    loss = distillation(teacher, RecoverConfig(distill=0.0))(inputs, logits, labels)
    assert torch.equal(loss, functional.cross_entropy(logits, labels))


def test_the_teacher_gets_no_gradient() -> None:
    teacher, inputs, logits, labels = example()
    distillation(teacher, RecoverConfig())(inputs, logits.requires_grad_(), labels).backward()
    assert teacher.weight.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize("test", [False, True])
def test_the_test_split_is_read_where_it_is_wanted(tmp_path: Path, test: bool) -> None:
    dataset = make_dataset()
    card = make_card(spec=make_input(28, "L"), stages=("train", "prune"))
    source = tmp_path / "source.safetensors"
    save(build("lenet", classes=3, channels=1), card, source)
    config = RecoverConfig(fit=FitConfig(epochs=1))
    recover(source, source, tmp_path / "made" / "model.safetensors", config, dataset=dataset, test=test)
    found = read_card(tmp_path / "made" / "model.safetensors")
    assert [metrics.split for metrics in found.inform.metrics] == ["validation", *(["test"] if test else [])]


def test_an_interrupted_recovery_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, source = make_dataset(), tmp_path / "pruned.safetensors"
    torch.manual_seed(0)
    checkpoint.save(
        build("lenet", classes=3, channels=1), make_card(spec=make_input(28, "L"), stages=("train", "prune")), source
    )
    config = RecoverConfig(fit=FitConfig(epochs=3, batch_size=6))
    straight, broken = tmp_path / "straight" / "model.safetensors", tmp_path / "broken" / "model.safetensors"
    recover(source, source, straight, config, dataset=dataset, test=False)

    def cut_short(model: nn.Module, **options: Any) -> object:
        def stop(result: EpochResult) -> None:
            if result.epoch == 2:
                raise KeyboardInterrupt

        return fit(model, **options, on_epoch=stop)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", cut_short)
        with pytest.raises(KeyboardInterrupt):
            recover(source, source, broken, config, dataset=dataset, test=False)
    assert (broken.parent / STATE).is_file()
    assert not broken.exists()
    report = recover(source, source, broken, config, dataset=dataset, test=False)
    wanted, found = (checkpoint.load(path)[0].state_dict() for path in (straight, broken))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert report.epochs == 3
    assert not (broken.parent / STATE).exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RecoverConfig(distill=1.5), r"must be in \[0, 1\]"),
        (RecoverConfig(temperature=0.0), r"must be in \[0, 1\]"),
        (RecoverConfig(features=-1.0), "recover.features must be 0 or a positive weight, got -1.0"),
        (RecoverConfig(features=float("inf")), "recover.features must be 0 or a positive weight, got inf"),
    ],
)
def test_settings_out_of_range(config: RecoverConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        distillation(nn.Linear(1, 1), config)


def test_similarities_are_cosines_around_the_mean_whatever_the_widths() -> None:
    features = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 4.0], [1.0, -2.0]])  # around (1, 1)
    wanted = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, -5.0, 0.0]])
    assert similarity_loss(features, wanted).item() == pytest.approx(0, abs=1e-12)
    # The third image stands where the first one does: its cosines with the four are 1, -1, 1 and 0 instead of 0, 0, 1
    # and -1, so that of the 16 pairs (0, 2), (1, 2), (2, 3) and their mirror images differ by 1.
    other = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert similarity_loss(other, wanted).item() == pytest.approx((6 + 1) / 16)


def test_features_are_what_the_classifier_reads() -> None:
    model = build("lenet", classes=3, channels=1)
    with features_read(model) as seen:
        logits = model(torch.rand(2, 1, 28, 28))
    (features,) = seen
    assert torch.allclose(last_layers(model)[0](features), logits)
    model(torch.rand(3, 1, 28, 28))
    assert seen[0] is features  # no hook is left


def test_a_teacher_with_other_features_is_followed(tmp_path: Path) -> None:
    dataset, source, target = make_dataset(), tmp_path / "source.safetensors", tmp_path / "made" / "model.safetensors"
    card = make_card(spec=make_input(28, "L"), stages=("train", "prune"))
    torch.manual_seed(0)
    model = build("lenet", classes=3, channels=1)
    save(model, card, source)
    weights = []
    for features in (0.0, 50.0):
        config = RecoverConfig(fit=FitConfig(epochs=2, batch_size=6, keep="last"), features=features)
        report = recover(source, source, target, config, dataset=dataset, test=False, resume=False)
        assert report.best_epoch == 2
        weights.append(torch.cat([tensor.flatten() for tensor in checkpoint.load(target)[0].state_dict().values()]))
    start = torch.cat([tensor.flatten() for tensor in model.state_dict().values()])
    # The teacher is the network itself: the pull to its features holds the weights back.
    assert 0 < (weights[1] - start).norm() < (weights[0] - start).norm()


def test_a_network_without_a_classifier_is_recovered_by_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.recover.last_layers", lambda model: [])
    source, target = tmp_path / "source.safetensors", tmp_path / "made" / "model.safetensors"
    save(build("lenet", classes=3, channels=1), make_card(spec=make_input(28, "L"), stages=("train", "prune")), source)
    config = RecoverConfig(fit=FitConfig(epochs=1))
    assert recover(source, source, target, config, dataset=make_dataset(), test=False).epochs == 1
    taught = dataclasses.replace(config, features=1.0)
    with pytest.raises(UsageError, match=r"has no classifier whose features could be taught; recover\.features = 0"):
        recover(source, source, target, taught, dataset=make_dataset(), test=False)


@pytest.mark.parametrize("before", [0.0, 1.0])
def test_a_recovery_that_makes_it_worse_keeps_the_start(tmp_path: Path, before: float) -> None:
    dataset, source, target = make_dataset(), tmp_path / "source.safetensors", tmp_path / "made" / "model.safetensors"
    metrics = Metrics(dataset="tiny", split="validation", n=12, top1=before, low=0.0, high=1.0)
    card = make_card(spec=make_input(28, "L"), stages=("train", "prune"))
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=(metrics,)))
    torch.manual_seed(0)
    save(build("lenet", classes=3, channels=1), card, source)
    # Images of noise cannot be learnt: no epoch answers all of them.
    config = RecoverConfig(fit=FitConfig(epochs=1, batch_size=4))
    report = recover(source, source, target, config, dataset=dataset, test=False)
    weights = [checkpoint.load(path)[0].state_dict() for path in (source, target)]
    same = all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert (report.best_epoch, same) == ((0, True) if before else (1, False))
