"""The training loop: resuming, stopping, freezing, keeping the best."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.zoo.factories import make_input, make_samples
from zoo.base.errors import TrainingError, UsageError
from zoo.data.augment.pipeline import Augment
from zoo.data.decoded import DecodedImages, Normalise
from zoo.networks.lora import add_lora
from zoo.networks.registry import build
from zoo.networks.stages import Freezing
from zoo.training.evaluate import torch_logits
from zoo.training.loop.fit import FitConfig, FitReport, Stopped, fit
from zoo.training.loop.losses import cross_entropy
from zoo.training.loop.methods.masks import Mask
from zoo.training.loop.methods.semi_supervised import Unlabelled
from zoo.training.loop.state import LOG, STATE
from zoo.training.loop.trainer import with_sync_batch_norm

SPEC = make_input(8, "L")
TRAIN = DecodedImages(make_samples(13, 3), SPEC)
VALIDATION = DecodedImages(make_samples(9, 3, seed=1), SPEC)
STEPS = 3
"""Per epoch: batches of 5, 5 and 3 images."""


@pytest.fixture(autouse=True)
def save_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """These epochs are so short that they would not all be written."""
    monkeypatch.setattr("zoo.training.loop.trainer._SAVE_SHARE", 1e9)


class Net(nn.Module):
    """Layers, then a classifier of three labels."""

    def __init__(self, *layers: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*layers, nn.Flatten()), nn.Linear(features, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def _net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Dropout(0.2)]
    return Net(*layers, features=4 * 36)


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


UNLABELLED = DecodedImages(make_samples(20, 3, seed=3), SPEC)
WAYS = {
    "unfreezing": {"config": {"freeze": Freezing(unfreeze=(0, 1, 2))}},
    "plateau, NAG, average": {"config": {"schedule": "plateau", "patience": 1, "optimizer": "nag", "ema": 0.9}},
    "MixUp, balanced": {"config": {"augment": Augment(mixup=0.5, cutmix=1.0, noise=5.0), "sampler": "balanced"}},
    "focal, weights, pieces": {"config": {"loss": "focal", "class_weights": "balanced", "accumulate": 2}},
    "statistics anew": {"config": {"freeze": Freezing(norm="reestimate")}},
    "towards the start": {"config": {"l2sp": 0.1, "layer_decay": 0.5}},
    "cached head": {"config": {"freeze": Freezing(stages=1), "views": 2}},
    "mask": {"mask": Mask(fraction=0.3, by="gradient")},
    "FixMatch": {"unlabelled": UNLABELLED, "semi": Unlabelled(threshold=0.3, ratio=2)},
    "pseudo-labels": {"unlabelled": UNLABELLED, "semi": Unlabelled(method="pseudo-label", threshold=0.3, ratio=1)},
    "workers": {"train": DecodedImages(make_samples(13, 3), SPEC, cache_bytes=0)},
    "bf16": {"config": {"precision": "bf16"}},
    "a validation every second epoch": {"validation": DecodedImages(make_samples(18, 3, seed=1), SPEC)},
    "frozen statistics within convolutions": {"config": {"freeze": Freezing(norm="freeze")}},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_resumes_to_the_same_bits(tmp_path, way, monkeypatch):
    options = dict(WAYS[way])
    config = _config(**options.pop("config", {}))
    whole, resumed = _net(), _net()
    report = _fit(tmp_path / "whole", whole, config, **options)
    assert not _same(whole, _net())
    step = 0
    stops = iter(sorted(random.Random(way).sample(range(2, 4 * STEPS), 2)))
    stop_at = next(stops)
    original = torch.optim.Optimizer.zero_grad

    def interrupt(self, *arguments, **keywords):
        nonlocal step
        step += 1
        if step == stop_at:
            signal.raise_signal(signal.SIGINT)
        original(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _fit(tmp_path / "part", _net(), config, **options)
        stop_at = next(stops, 0)
    again = _fit(tmp_path / "part", resumed, config, **options)
    # What was done is not done again.
    assert step == 4 * STEPS
    assert _same(whole, resumed)
    assert again.best_epoch == report.best_epoch
    logs = [[{**row, "seconds": ""} for row in _log(tmp_path / name)] for name in ("whole", "part")]
    assert logs[0] == logs[1] and len(logs[0]) == (2 if "validation" in way else 4)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.zoo.training.loop.test_fit import WAYS, _config, _fit, _net

steps, stop_at, original = 0, 0, torch.optim.Optimizer.zero_grad

def die(self, *arguments, **keywords):
    global steps
    steps += 1
    if steps == stop_at:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, *arguments, **keywords)

torch.optim.Optimizer.zero_grad = die
for stop_at in map(int, sys.argv[2:]):
    if child := os.fork():
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    else:
        _fit(Path(sys.argv[1]), _net(), _config(**WAYS["unfreezing"]["config"]))
        os._exit(0)
"""
"""A process for each step at which it is killed."""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    config = _config(**WAYS["unfreezing"]["config"])
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "part", str(2 * STEPS), "2"], check=True, timeout=60)
    assert (tmp_path / "part" / STATE).is_file()
    whole, resumed = _net(), _net()
    _fit(tmp_path / "whole", whole, config)
    _fit(tmp_path / "part", resumed, config)
    assert _same(whole, resumed)


FULL = """
import resource, sys
from pathlib import Path
from tests.zoo.training.loop.test_fit import _fit
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
_fit(Path(sys.argv[1]))
"""


def test_a_full_disk_is_a_sentence_and_the_old_state_stays(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, loss=_after(STEPS, KeyboardInterrupt()))
    before = (tmp_path / STATE).read_bytes()
    assert len(before) > 4096
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], check=False, capture_output=True, text=True)
    assert re.search(r"ArtefactError: .*state\.pt: cannot be written .*free some space", done.stderr)
    assert (tmp_path / STATE).read_bytes() == before
    assert not list(tmp_path.glob(".*tmp"))


def test_resuming_trains_only_what_is_left(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, loss=_after(2 * STEPS, KeyboardInterrupt()))
    with pytest.raises(ValueError, match="third"):
        _fit(tmp_path, loss=_after(2 * STEPS - 1, ValueError("third")))
    assert "resuming after epoch 2/4" in capsys.readouterr().err


def test_short_epochs_are_not_all_written(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.training.loop.trainer._SAVE_SHARE", 1e-9)
    written = []
    monkeypatch.setattr(
        "zoo.training.loop.trainer.write_state", lambda path, fingerprint, state, tensors: written.append(state.epoch)
    )
    _fit(tmp_path, config=_config(epochs=6))
    assert written == [1]
    assert len(_log(tmp_path)) == 6


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
        "data": {"train": DecodedImages(make_samples(13, 3, seed=2), SPEC)},
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
    assert json.loads(state["numbers"])["epoch"] == 1
    resumed, whole = _net(), _net()
    _fit(tmp_path, resumed)
    _fit(tmp_path / "whole", whole)
    assert _same(resumed, whole)


def test_frozen_parameters_stay(tmp_path):
    model = _net()
    model.body[0].requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _fit(tmp_path, model, _config(optimizer="adamw", weight_decay=0.5))
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"body.0.weight", "body.0.bias"}


def test_nothing_to_train(tmp_path):
    with pytest.raises(TrainingError, match="every parameter is frozen"):
        _fit(tmp_path, _net().requires_grad_(False))


def test_the_best_epoch_is_kept(tmp_path):
    model = _net()
    # From the third epoch on, the loss is climbed instead of descended.
    config = _config(epochs=5, lr=0.03, schedule="constant", augment=Augment())
    seen = DecodedImages(TRAIN.samples[:9], SPEC)
    report = _fit(tmp_path, model, config, validation=seen, loss=_after(2 * STEPS, -1.0))
    top1 = [float(row["validation_top1"]) for row in _log(tmp_path)]
    assert report.validation_top1 == max(top1) > top1[-1]
    losses = [float(row["validation_loss"]) for row in _log(tmp_path)]
    order = sorted(range(5), key=lambda epoch: (-top1[epoch], losses[epoch]))
    assert report.best_epoch == order[0] + 1 <= 3
    found = torch_logits(model, seen)
    assert (found.argmax(1) == seen.labels.numpy()).mean() == report.validation_top1
    assert not model.training and report.epochs == 5


def test_the_last_epoch_is_kept_where_that_is_asked_for(tmp_path):
    model = _net()
    config = _config(epochs=5, lr=0.03, schedule="constant", augment=Augment(), keep="last")
    report = _fit(tmp_path, model, config, validation=TRAIN, loss=_after(2 * STEPS, -1.0))
    top1 = [float(row["validation_top1"]) for row in _log(tmp_path)]
    assert report.best_epoch == 5 and report.validation_top1 == top1[-1] < max(top1)
    found = torch_logits(model, TRAIN)
    assert (found.argmax(1) == TRAIN.labels.numpy()).mean() == top1[-1]


def test_equal_accuracy_is_decided_by_the_loss(tmp_path):
    one = DecodedImages(make_samples(1, 1), SPEC)
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

    _fit(tmp_path, config=_config(epochs=2), train=DecodedImages(make_samples(11, 3), SPEC), loss=loss)
    assert sizes == [5, 5, 5, 5]


def test_frozen_statistics_stay_and_updated_ones_keep_up(tmp_path):
    for rule, moved in (("freeze", False), ("update", True)):
        model = Net(nn.Conv2d(1, 4, 3), norm := nn.BatchNorm2d(4, momentum=0.01), features=4 * 36)
        before = norm.running_mean.clone()
        _fit(tmp_path / rule, model, _config(freeze=Freezing(norm=rule)))
        assert torch.equal(norm.running_mean, before) is not moved
        assert norm.momentum == (0.1 if moved else 0.01)


def test_the_head_learns_faster(tmp_path):
    moves = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        model = Net(nn.Flatten(), nn.Linear(64, 8), features=8)
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
        ({"batch_size": -1}, "batch_size must be at least 0, got -1"),
        ({"lr": 0.0}, "lr must be a positive number, got 0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        _config(**changes)


def _counted(model: nn.Module) -> list[int]:
    """Counts how many images go through the first layer."""
    seen: list[int] = []
    model.body[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


def test_a_frozen_body_is_computed_once_and_changes_nothing(tmp_path):
    config = _config(epochs=6, augment=Augment(), freeze=Freezing(stages=1), label_smoothing=0.1)
    cached, plain = _net(), _net()
    seen = _counted(cached)
    _fit(tmp_path / "cached", cached, config)
    # Checking the cut against the whole network takes a few images more than the two sets have.
    assert sum(seen) <= 13 + 9 + 20
    # A loss of one's own may look at the images, so nothing can be kept.
    own = cross_entropy(0.1)
    _fit(tmp_path / "plain", plain, config, loss=lambda *batch: own(*batch))
    for (name, first), second in zip(cached.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(first, second, atol=1e-5), name


def test_augmented_views_are_kept_and_their_time_counts(tmp_path):
    model = _net()
    seen = _counted(model)
    model.body[0].register_forward_hook(lambda *_: time.sleep(0.05))
    report = _fit(tmp_path, model, _config(epochs=8, freeze=Freezing(stages=1), views=3))
    assert 3 * 13 + 9 <= sum(seen) <= 3 * 13 + 9 + 20
    epochs = sum(float(row["seconds"]) for row in _log(tmp_path))
    # Three views of the training images, one of the others.
    assert report.seconds > epochs + 0.1


def test_why_nothing_is_kept_is_said(tmp_path, capsys):
    _fit(tmp_path, _net(), _config(epochs=2, freeze=Freezing(stages=1)))
    assert "frozen layers are computed in every epoch: augmentation is drawn anew" in capsys.readouterr().err


def test_unfreezing_moves_what_it_says(tmp_path):
    model = _net()
    weights: list[dict[str, torch.Tensor]] = [{k: v.clone() for k, v in model.state_dict().items()}]

    def keep(_):
        weights.append({k: v.clone() for k, v in model.state_dict().items()})

    config = _config(epochs=3, freeze=Freezing(unfreeze=(0, 1)), augment=Augment())
    _fit(tmp_path, model, config, on_epoch=keep)
    moved = [{k for k in now if not torch.equal(now[k], before[k])} for before, now in itertools.pairwise(weights)]
    last = {"body.3.weight", "body.3.bias", "head.weight", "head.bias"}
    # The BatchNorm stands in the first stage, with the convolution before it.
    assert moved == [{"head.weight", "head.bias"}, last, last]


def test_a_mask_holds_everything_else(tmp_path):
    for fraction in (0.01, 0.4):
        model, start = _net(), _net()
        config = _config(weight_decay=0.5, freeze=Freezing(norm="freeze"))
        report = _fit(tmp_path / str(fraction), model, config, mask=Mask(fraction=fraction, by="magnitude"))
        body = [(a, b) for (n, a), b in zip(model.named_parameters(), start.parameters(), strict=True) if "body" in n]
        total = sum(a.numel() for a, _ in body)
        count = round(fraction * total)
        assert report.trainable == count + sum(p.numel() for p in model.head.parameters())
        assert 0 < sum(int((a != b).sum()) for a, b in body) <= count
        assert not torch.equal(model.head.weight, start.head.weight)


def test_pieces_of_a_batch_add_up(tmp_path):
    whole, pieces = (Net(nn.Flatten(), nn.Linear(64, 8), features=8) for _ in range(2))
    pieces.load_state_dict(whole.state_dict())
    _fit(tmp_path / "whole", whole, _config(optimizer="sgd", augment=Augment()))
    _fit(tmp_path / "pieces", pieces, _config(optimizer="sgd", augment=Augment(), accumulate=3))
    for first, second in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


def test_l2sp_keeps_weights_near_their_start(tmp_path):
    moves = []
    for strength in (0.0, 10.0):
        model, start = _net(), _net()
        config = _config(l2sp=strength, lr=0.05, weight_decay=0.0, optimizer="sgd", epochs=20)
        _fit(tmp_path / str(strength), model, config, validation=TRAIN)
        moves.append((model.body[3].weight - start.body[3].weight).norm().item())
    assert moves[1] < 0.6 * moves[0]


@pytest.mark.parametrize(("gain", "chosen"), [(1.5, "bf16"), (1.05, "float32")])
def test_bf16_where_it_is_faster_and_for_all_of_a_run(tmp_path, monkeypatch, capsys, gain, chosen):
    monkeypatch.setattr("zoo.training.loop.precision.processor", lambda: {"flags": ["avx512_bf16"]})
    monkeypatch.setattr("zoo.training.loop.precision._STEPS_WORTH_MEASURING", 4 * STEPS)
    ratios = iter([gain, 0.0])
    monkeypatch.setattr("zoo.training.loop.precision.statistics.median", lambda _: next(ratios))
    whole, asked = _net(), _net()
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "auto", _net(), loss=_after(1, KeyboardInterrupt()), title="auto")
    report = _fit(tmp_path / "auto", whole, loss=cross_entropy(0.0), title="auto")
    _fit(tmp_path / "asked", asked, _config(precision=chosen), loss=cross_entropy(0.0))
    assert report.precision == chosen
    assert _same(whole, asked)
    said = capsys.readouterr().err
    assert f"auto: {chosen}, as a step in bf16 is {gain:.2f} times as fast as in float32" in said


def test_processors_without_bf16_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.training.loop.precision.processor", lambda: {"flags": ["avx2"]})
    monkeypatch.setattr("zoo.training.loop.precision._STEPS_WORTH_MEASURING", 1)
    monkeypatch.setattr("zoo.training.loop.precision.statistics.median", lambda _: pytest.fail("measured"))
    assert _fit(tmp_path).precision == "float32"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "4 epochs of 3 steps of 5 images; 631 weights of all 3 stages learn"),
        (
            {"freeze": Freezing(stages=1, norm="freeze")},
            "435 weights of the last 1 of 3 stages learn, BatchNorm keeps its statistics",
        ),
        ({"freeze": Freezing(unfreeze=(0, 2))}, "weights of the last 2 of 3 stages learn"),
        ({"batch_size": 0}, f"4 epochs of 1 steps of {FitConfig(batch_size=0).for_images(13).batch_size} images"),
    ],
)
def test_what_will_be_trained_is_said_before(tmp_path, capsys, changes, told):
    _fit(tmp_path, config=_config(**changes), title="net")
    said = capsys.readouterr().err.replace("\n", " ")
    assert "net: 13 training images, 4 to 5 of each of 3 labels; 4 epochs of" in said
    assert told in said


@pytest.mark.parametrize(("seconds", "told"), [(60.0, True), (1.0, False)])
def test_how_long_it_takes_is_said_after_the_first_steps(tmp_path, capsys, monkeypatch, seconds, told):
    """Six of twelve steps are done; validation takes a fifth of all at most."""
    laps = itertools.count(0.0, seconds)
    monkeypatch.setattr("zoo.training.loop.trainer.time.perf_counter", lambda: next(laps))
    monkeypatch.setattr("zoo.training.loop.trainer._VALIDATION_SHARE", 0.25)
    monkeypatch.setattr("zoo.training.loop.trainer.Trainer._validated", lambda *_: True)
    _fit(tmp_path, title="net")
    said = capsys.readouterr().err
    assert ("minutes to go, as its first steps promise" in said) == told


def test_it_ends_when_validation_no_longer_rises(tmp_path, capsys):
    # From the third epoch on, the loss is climbed instead of descended.
    config = _config(epochs=9, lr=0.03, schedule="constant", augment=Augment(), stop_after=2)
    options = {"validation": DecodedImages(TRAIN.samples[:9], SPEC)}
    report = _fit(tmp_path, config=config, loss=_after(2 * STEPS, -1.0), **options)
    epochs = [int(row["epoch"]) for row in _log(tmp_path)]
    assert epochs == list(range(1, report.best_epoch + 3)) and len(epochs) < 9
    assert f"no better than epoch {report.best_epoch} in 2 validations; ends here" in capsys.readouterr().err


def test_validating_takes_a_fifth_of_the_time_at_most(tmp_path):
    few = DecodedImages(make_samples(5, 3), SPEC)  # of which an epoch takes no longer than validating
    seen: list[int] = []
    report = _fit(tmp_path, config=_config(epochs=7), train=few, on_epoch=lambda result: seen.append(result.epoch))
    assert seen == [3, 6, 7] == [int(row["epoch"]) for row in _log(tmp_path)]
    assert report.best_epoch in seen
    assert sum(float(row["seconds"]) for row in _log(tmp_path)) == pytest.approx(report.seconds, abs=0.06)


def test_an_epoch_can_end_training(tmp_path):
    def stop(result):
        if result.epoch == 2:
            raise Stopped

    report = _fit(tmp_path, on_epoch=stop)
    assert len(_log(tmp_path)) == 2
    assert report.best_epoch <= 2


def test_reestimated_statistics_are_those_of_the_training_pictures(tmp_path):
    model = _net()
    _fit(tmp_path, model, _config(freeze=Freezing(norm="reestimate"), batch_size=13))
    pictures = Normalise(SPEC, torch.device("cpu"))(torch.stack([TRAIN[index][0] for index in range(13)]))
    assert torch.allclose(model.body[1].running_mean, model.body[0](pictures).mean((0, 2, 3)), atol=1e-5)
    with pytest.raises(UsageError, match="no trained layer of Net is a BatchNorm"):
        _fit(tmp_path / "none", _net(), _config(freeze=Freezing(norm="reestimate", stages=1)))


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_sync_batch_norm_computes_the_same_with_the_same_tensors(name):
    torch.manual_seed(0)
    model = build(name, classes=3, channels=3).eval()
    twin = with_sync_batch_norm(model)
    synced = [module for module in twin.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(synced) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) > 0
    for key, tensor in model.state_dict(keep_vars=True).items():
        assert twin.state_dict(keep_vars=True)[key] is tensor
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(twin(images), model(images))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    def loss(inputs, logits, labels):
        return Broken.apply(cross_entropy(0.0)(inputs, logits, labels))

    model, start = _net(), _net()
    with pytest.raises(TrainingError, match=r"the gradient's norm is (nan|inf) after 0\.00 epochs .*nothing was kept"):
        _fit(tmp_path, model, loss=loss)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def test_lora_leaves_the_statistics_of_the_frozen_network(tmp_path):
    torch.manual_seed(0)
    model = Net(nn.Conv2d(1, 4, 3), norm := nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 8), features=8)
    add_lora(model, targets=["body.3"], rank=2, alpha=4.0)
    before = norm.running_mean.clone()
    _fit(tmp_path, model)
    assert torch.equal(norm.running_mean, before)
    with pytest.raises(UsageError, match=r"2 of 2 LoRA tensors untrained; .* leave train\.freeze out"):
        _fit(tmp_path, model, _config(freeze=Freezing(stages=1)))


def test_a_new_mlp_head_learns_its_statistics_although_the_others_are_frozen(tmp_path):
    model = _net()
    model.head = nn.Sequential(nn.BatchNorm1d(4 * 36), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 3))
    _fit(tmp_path, model, _config(freeze=Freezing(norm="freeze")))
    assert model.head[0].num_batches_tracked > 0
    assert model.body[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("changes", "images"), [({"batch_size": 1}, 13), ({"batch_size": 8, "accumulate": 8}, 13), ({}, 1)]
)
def test_batches_that_are_too_small_for_batchnorm(tmp_path, changes, images):
    few = DecodedImages(make_samples(images, 3), SPEC)
    with pytest.raises(UsageError, match=r"BatchNorm has no variance over 1 image\(s\)"):
        _fit(tmp_path, config=_config(**changes), train=few)
    _fit(tmp_path, config=_config(**changes, freeze=Freezing(norm="freeze")), train=few)


def test_norms_only_needs_norms(tmp_path):
    model = Net(nn.Flatten(), nn.Linear(64, 8), features=8)
    with pytest.raises(UsageError, match="norms_only: Net has no normalisation layer"):
        _fit(tmp_path, model, _config(freeze=Freezing(norms_only=True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 9, "batch_size": 8}, "9 pieces of a batch of 8"),
        ({"stop_after": 2, "keep": "last"}, "stop_after keeps the best epoch"),
        ({"weight_decay": math.nan}, "weight_decay must be 0 or a positive number"),
        ({"precision": "fp8"}, "precision must be one of auto, bf16, float32"),
        ({"loss": "hinge"}, "loss must be one of cross-entropy, focal"),
        ({"ema": 1.0}, "ema must be a decay"),
        ({"l2sp": -1.0}, "l2sp must be 0 or a positive"),
        ({"sampler": "even"}, "sampler must be one of"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(UsageError, match=message):
        FitConfig(**options)


def test_few_labels_need_the_others(tmp_path):
    with pytest.raises(UsageError, match="no unlabelled images to learn from"):
        _fit(tmp_path, semi=Unlabelled())
    with pytest.raises(UsageError, match="without MixUp or CutMix"):
        _fit(tmp_path, config=_config(augment=Augment(mixup=0.2)), semi=Unlabelled(), unlabelled=UNLABELLED)


@pytest.mark.parametrize(
    ("images", "size"), [(1, 8), (799, 8), (800, 16), (1019, 16), (1600, 32), (3200, 64), (10**6, 64)]
)
def test_the_batch_follows_from_the_number_of_images_where_it_is_left_open(images, size):
    frozen, updated = (Freezing(norm=norm) for norm in ("freeze", "update"))
    assert _config(batch_size=0, freeze=frozen).for_images(images).batch_size == size
    assert _config(batch_size=0, freeze=updated).for_images(images).batch_size == max(size, 16)
    assert _config(batch_size=7).for_images(images).batch_size == 7


def test_an_open_batch_trains_as_the_one_that_it_becomes(tmp_path):
    chosen, given = _net(), _net()
    _fit(tmp_path / "chosen", chosen, _config(batch_size=0, freeze=Freezing(norm="freeze")))
    _fit(tmp_path / "given", given, _config(batch_size=8, freeze=Freezing(norm="freeze")))
    for (name, first), second in zip(chosen.state_dict().items(), given.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("freeze", [Freezing(), Freezing(stages=1)])
def test_without_validation_images_the_last_epoch_is_kept(tmp_path, freeze):
    config = _config(keep="last", ema=0.9, freeze=freeze, views=2)
    nothing, seen, unseen, results = DecodedImages([], SPEC), _net(), _net(), []
    report = _fit(tmp_path / "seen", seen, config)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "unseen", _net(), config, validation=nothing, on_epoch=_interrupt)
    found = _fit(tmp_path / "unseen", unseen, config, validation=nothing, on_epoch=results.append)
    assert _same(seen, unseen), "validation changes nothing but which epoch is kept"
    assert (found.best_epoch, found.epochs) == (report.best_epoch, report.epochs) == (4, 4)
    assert math.isnan(found.validation_top1) and not math.isnan(report.validation_top1)
    assert [result.epoch for result in results] == [2, 3, 4]
    rows = _log(tmp_path / "unseen")
    assert [(row["epoch"], row["validation_loss"], row["validation_top1"]) for row in rows] == [
        (f"{epoch}", "nan", "nan") for epoch in (1, 2, 3, 4)
    ]
    assert [row["loss"] for row in rows] == [row["loss"] for row in _log(tmp_path / "seen")]


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{}, {"keep": "last", "schedule": "plateau"}])
def test_what_needs_validation_images_is_refused_without(tmp_path, changes):
    with pytest.raises(
        UsageError, match=r"without validation images expected train\.keep = 'last' and a schedule other"
    ):
        _fit(tmp_path, config=_config(**changes), validation=DecodedImages([], SPEC))
