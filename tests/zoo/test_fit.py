"""The training loop: resuming, stopping, freezing, keeping the best."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.zoo.factories import make_input, make_samples
from zoo.batches import Images
from zoo.datasets.augment import Augment
from zoo.errors import TrainingError, UsageError
from zoo.evaluate import torch_logits
from zoo.fit import LOG, STATE, FitConfig, FitReport, cross_entropy, fit

SPEC = make_input(8, "L")
TRAIN = Images(make_samples(13, 3), SPEC)
VALIDATION = Images(make_samples(9, 3, seed=1), SPEC)
STEPS = 3
"""Per epoch: batches of 5, 5 and 3 pictures."""


def _net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 3))


def _config(**changes: object) -> FitConfig:
    return FitConfig(**{"epochs": 4, "batch_size": 5, "lr": 0.01, "augment": Augment(rotate=10, shift=0.1)} | changes)


def _fit(folder: Path, model: nn.Module | None = None, config: FitConfig | None = None, **options: object) -> FitReport:
    settings = {"train": TRAIN, "validation": VALIDATION, "resume": True} | options
    return fit(_net() if model is None else model, spec=SPEC, config=config or _config(), folder=folder, **settings)


def _after(steps: int, then: object):
    """Cross-entropy that turns into `then` (an exception or a factor) after so many steps."""
    done = 0

    def loss(inputs, logits, labels):
        nonlocal done
        done += 1
        value = cross_entropy(0.0)(inputs, logits, labels)
        if done <= steps:
            return value
        if isinstance(then, float):
            return value * then
        raise then

    return loss


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _log(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / LOG).read_text().splitlines()))


@pytest.mark.parametrize("optimizer", ["adamw", "nag"])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, epoch, optimizer):
    config, whole, resumed = _config(optimizer=optimizer), _net(), _net()
    report = _fit(tmp_path / "whole", whole, config)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "part", _net(), config, loss=_after(epoch * STEPS + 1, KeyboardInterrupt()))
    again = _fit(tmp_path / "part", resumed, config)
    assert _same(whole, resumed)
    assert (again.best_epoch, again.validation_top1) == (report.best_epoch, report.validation_top1)
    logs = [[{**row, "seconds": ""} for row in _log(tmp_path / name)] for name in ("whole", "part")]
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_resuming_trains_only_what_is_left(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, loss=_after(2 * STEPS, KeyboardInterrupt()))
    with pytest.raises(ValueError, match="third"):
        _fit(tmp_path, loss=_after(2 * STEPS - 1, ValueError("third")))
    assert "resuming after epoch 2/4" in capsys.readouterr().err


def test_without_resume_it_starts_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, loss=_after(2 * STEPS, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, loss=_after(STEPS, KeyboardInterrupt()), resume=False)
    assert len(_log(tmp_path)) == 1


@pytest.mark.parametrize("changed", ["settings", "data", "weights", "identity"])
def test_the_state_of_another_run_is_not_used(tmp_path, capsys, changed):
    other = {
        "settings": {"config": _config(lr=0.02)},
        "data": {"train": Images(make_samples(13, 3, seed=2), SPEC)},
        "weights": {"model": _net(1)},
        "identity": {"identity": {"teacher": "another"}},
    }[changed]
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, loss=_after(STEPS, KeyboardInterrupt()), **other)
    fresh, model = _net(), _net()
    _fit(tmp_path / "fresh", fresh)
    _fit(tmp_path, model)
    assert "belongs to a run with other settings or data; starting over" in capsys.readouterr().err
    assert _same(model, fresh)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan after 1\.33 epochs .*--set train\.lr"):
        _fit(tmp_path, loss=_after(STEPS + 1, float("nan")))
    state = torch.load(tmp_path / STATE, weights_only=True)
    assert state["numbers"].startswith("[1, ")
    resumed, whole = _net(), _net()
    _fit(tmp_path, resumed)
    _fit(tmp_path / "whole", whole)
    assert _same(resumed, whole)


def test_frozen_parameters_stay(tmp_path):
    model = _net()
    model[0].requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _fit(tmp_path, model, _config(optimizer="adamw", weight_decay=0.5))
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"0.weight", "0.bias"}


def test_nothing_to_train(tmp_path):
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        _fit(tmp_path, _net().requires_grad_(False))


def test_the_best_epoch_is_kept(tmp_path):
    model = _net()
    # From the third epoch on, the loss is climbed instead of descended.
    report = _fit(tmp_path, model, _config(epochs=5, augment=Augment()), validation=TRAIN, loss=_after(2 * STEPS, -1.0))
    top1 = [float(row["validation_top1"]) for row in _log(tmp_path)]
    assert report.validation_top1 == max(top1) > top1[-1]
    assert report.best_epoch == top1.index(max(top1)) + 1 <= 3
    found = torch_logits(model, TRAIN, device=torch.device("cpu"))
    assert (found.argmax(1) == TRAIN.labels.numpy()).mean() == report.validation_top1
    assert not model.training and report.epochs == 5


def test_equal_accuracy_is_decided_by_the_loss(tmp_path):
    one = Images(make_samples(1, 1), SPEC)
    config = _config(schedule="constant", augment=Augment())
    report = _fit(tmp_path, config=config, validation=one, loss=_after(2 * STEPS, -1.0))
    rows = [(-float(row["validation_top1"]), float(row["validation_loss"])) for row in _log(tmp_path)]
    assert rows[-1][0] == rows[0][0] == -1
    assert report.best_epoch == rows.index(min(rows)) + 1 < 4


def test_a_last_batch_of_one_picture_is_left_out(tmp_path):
    sizes: list[int] = []

    def loss(_, logits, labels):
        sizes.append(len(labels))
        return nn.functional.cross_entropy(logits, labels)

    _fit(tmp_path, config=_config(epochs=2), train=Images(make_samples(11, 3), SPEC), loss=loss)
    assert sizes == [5, 5, 5, 5]


def test_frozen_statistics_stay_and_updated_ones_keep_up(tmp_path):
    for rule, moved in (("freeze", False), ("update", True)):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.01), nn.Flatten(), nn.LazyLinear(3))
        model(torch.zeros(2, 1, 8, 8))
        before = model[1].running_mean.clone()
        _fit(tmp_path / rule, model, _config(norm=rule))
        assert torch.equal(model[1].running_mean, before) is not moved
        assert model[1].momentum == (0.1 if moved else 0.01)


def test_the_head_learns_faster(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 3)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(images))

    moves = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        model = Net()
        before = model.head.weight.detach().clone()
        _fit(tmp_path / str(factor), model, _config(head_factor=factor, epochs=1))
        moves.append((model.head.weight - before).norm().item())
    assert moves[1] > 3 * moves[0]


def test_it_learns(tmp_path):
    report = _fit(tmp_path, config=_config(epochs=12, augment=Augment()), validation=TRAIN)
    assert report.validation_top1 == 1.0
    rates = [float(row["lr"]) for row in _log(tmp_path)]
    assert max(rates) <= 0.01 and rates[-1] < 0.001


def test_label_smoothing():
    logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    plain, smooth = (cross_entropy(share)(logits, logits, labels).item() for share in (0.0, 0.2))
    other = cross_entropy(0.0)(logits, logits, 1 - labels).item()
    assert smooth == pytest.approx(0.9 * plain + 0.1 * other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be a positive number, got 0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        _config(**changes)
