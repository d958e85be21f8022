"""TensorBoard and Weights & Biases get every epoch once, whatever becomes of a session, and change no weight."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo.factories import make_input, make_samples
from zoo.base.errors import UsageError
from zoo.data.decoded import DecodedImages
from zoo.networks.stages import stages
from zoo.training.loop.fit import FitConfig, FitReport, fit
from zoo.training.loop.logs import LogJob, check_logs, open_logs, stage_factors
from zoo.training.loop.optim import make_optimizer
from zoo.training.loop.state import LOG, read_log

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
wandb = pytest.importorskip("wandb")

SPEC = make_input(8, "L")
TRAIN = DecodedImages(make_samples(12, 3), SPEC)
VALIDATION = DecodedImages(make_samples(9, 3, seed=1), SPEC)
BLOCK = 32768
"""Bytes, of the log format that .wandb files share with LevelDB."""


@pytest.fixture(autouse=True)
def nobody_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    # Nobody listens there: what tries to send fails at once.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), nn.Linear(4 * 36, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def _net() -> Net:
    torch.manual_seed(0)
    return Net()


def _fit(folder: Path, model: nn.Module | None = None, **options: Any) -> FitReport:
    config = FitConfig(epochs=4, batch_size=4, lr=0.01, head_factor=10.0, precision="float32")
    settings = {"resume": True, "title": "net", "config": config} | options
    return fit(model or _net(), train=TRAIN, validation=VALIDATION, spec=SPEC, folder=folder, **settings)


def _killed(folder: Path, *, epochs: int, saved: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A session that dies after so many epochs, whose state.pt is of an earlier one."""
    done = 0

    def on_epoch(_: object) -> None:
        nonlocal done
        done += 1
        with_state = 0.0 if done >= saved else 1e9
        monkeypatch.setattr("zoo.training.loop.trainer._SAVE_SHARE", with_state)
        if done == epochs:
            raise RuntimeError("killed")

    monkeypatch.setattr("zoo.training.loop.trainer._SAVE_SHARE", 1e9)
    with pytest.raises(RuntimeError, match="killed"):
        _fit(folder, on_epoch=on_epoch, **options)


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _wandb_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .wandb file: records in blocks, each with checksum, length and kind, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data, place, parts, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(parts)
            parts = b""
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def _offline_run(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return _wandb_rows(path)


def test_tensorboard_has_every_row_and_rate_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _killed(tmp_path, epochs=3, saved=2, monkeypatch=monkeypatch, logs=["tensorboard"])
    assert [step for step, _ in _scalars(tmp_path)["loss"]] == [1, 2, 3]
    _fit(tmp_path, logs=["tensorboard"])
    rows, scalars = read_log(tmp_path / LOG), _scalars(tmp_path)
    assert set(scalars) == {"lr", "loss", "validation_loss", "validation_top1", "seconds", "lr/body", "lr/classifier"}
    for tag in ("loss", "lr", "validation_loss", "validation_top1", "seconds"):
        assert [step for step, _ in scalars[tag]] == [1, 2, 3, 4]
        assert [value for _, value in scalars[tag]] == pytest.approx([row[tag] for row in rows], rel=1e-6)
    assert [value for _, value in scalars["lr/classifier"]] == pytest.approx([10 * row["lr"] for row in rows])
    assert scalars["lr/body"] == scalars["lr"]


def test_a_viewer_that_looks_on_sees_no_epoch_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _killed(tmp_path, epochs=3, saved=2, monkeypatch=monkeypatch, logs=["tensorboard"])
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    _fit(tmp_path, logs=["tensorboard"])
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_wandb_offline_has_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _killed(tmp_path, epochs=3, saved=2, monkeypatch=monkeypatch, logs=["wandb"])
    first = next((tmp_path / "wandb").glob("offline-run-*"))
    assert "nothing is sent; `wandb sync" in capsys.readouterr().err
    _fit(tmp_path, logs=["wandb"])
    second = next((tmp_path / "wandb").glob("offline-run-*"))
    assert second.name.rpartition("-")[2] == first.name.rpartition("-")[2], "the same run"
    rows, logged = read_log(tmp_path / LOG), _offline_run(tmp_path)
    assert [row["_step"] for row in logged] == [1, 2, 3, 4]
    for row, found in zip(rows, logged, strict=True):
        assert {key: found[key] for key in row if key != "epoch"} == pytest.approx(
            {key: value for key, value in row.items() if key != "epoch"}
        )
        assert found["lr/classifier"] == pytest.approx(10 * row["lr"])


def test_another_training_is_another_run_of_wandb(tmp_path: Path) -> None:
    _fit(tmp_path, logs=["wandb"])
    _fit(tmp_path, logs=["wandb"], resume=False)
    numbers = {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert len(numbers) == 2


def test_logs_change_no_bit(tmp_path: Path) -> None:
    plain, logged = _net(), _net()
    _fit(tmp_path / "plain", plain)
    _fit(tmp_path / "logged", logged, logs=["wandb", "tensorboard", "tensorboard"])
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), logged.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("mode", "key", "found"),
    [
        (None, None, "offline"),
        (None, "0" * 40, "online"),
        ("offline", "0" * 40, "offline"),
        ("online", None, "offline"),
    ],
)
def test_wandb_is_sent_only_by_who_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, key: str | None, found: str
) -> None:
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is not None:
            monkeypatch.setenv(name, value)
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        asked.append(options)
        raise wandb.errors.CommError("no network in tests")

    monkeypatch.setattr(wandb, "init", init)
    job = LogJob(folder=tmp_path, title="net", fingerprint="f", resume=True, settings={})
    with (
        pytest.raises(Exception, match="--log wandb: no network in tests; WANDB_MODE=offline"),
        open_logs(["wandb"], job, [], {}),
    ):
        pass
    (options,) = asked
    assert (options["mode"], options["resume"]) == (found, "allow" if found == "online" else None)


def test_a_run_that_goes_on_online_repeats_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    steps: list[int] = []

    class Run:
        step, url = 3, "https://example.org/run"

        def log(self, values: dict[str, float], step: int) -> None:
            steps.append(step)

        def finish(self, exit_code: int) -> None:
            pass

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    job = LogJob(folder=tmp_path, title="net", fingerprint="f", resume=True, settings={})
    history = [{"epoch": float(epoch), "lr": 0.1, "loss": 1.0} for epoch in (1, 2, 3)]
    with open_logs(["wandb"], job, history, {}) as write:
        write({"epoch": 4.0, "lr": 0.1, "loss": 1.0})
    assert steps == [3, 4]


def test_rates_are_those_of_the_optimizer() -> None:
    model = _net()
    model.body.requires_grad_(False)
    names = [name for name, _ in model.head.named_parameters(prefix="head")]
    optimizer = make_optimizer("sgd", model, lr=0.1, factors=dict.fromkeys(names, 3.0))
    assert stage_factors(model, stages(model), optimizer) == {"classifier": 3.0}


def test_what_is_missing_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"tensorbord.*did you mean tensorboard"):
        check_logs(["tensorbord"])
    for name in ("tensorboard", "wandb"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            for loaded in [module for module in sys.modules if module.startswith("torch.utils.tensorboard")]:
                patch.delitem(sys.modules, loaded)
            with pytest.raises(ModuleNotFoundError) as error:
                check_logs([name])
            assert error.value.name == name
