"""Two processes that train together do what one does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.factories import make_input, make_samples
from tests.zoo.training.loop.test_fit import UNLABELLED, Net, _config, _fit, _same
from zoo.base.errors import TrainingError
from zoo.data.augment.pipeline import Augment
from zoo.data.decoded import DecodedImages
from zoo.networks.stages import Freezing
from zoo.training.evaluate import torch_logits
from zoo.training.loop.distributed import World, check_shared, others_alive
from zoo.training.loop.methods.masks import Mask
from zoo.training.loop.methods.semi_supervised import Unlabelled

WAYS = {
    "whole": {"config": {"optimizer": "nag", "ema": 0.9}},
    "pieces, towards the start": {"config": {"accumulate": 2, "l2sp": 0.1, "optimizer": "sgd"}},
    "unfreezing": {"config": {"freeze": Freezing(unfreeze=(0, 2), norm="freeze"), "optimizer": "sgd"}},
    "MixUp": {"config": {"optimizer": "sgd", "augment": Augment(flip=True, mixup=0.5, cutmix=1.0)}},
    "mask": {"config": {"optimizer": "sgd"}, "mask": Mask(fraction=0.3, by="fisher")},
    "FixMatch": {"config": {"optimizer": "sgd"}, "semi": Unlabelled(threshold=0.2, ratio=2), "unlabelled": UNLABELLED},
}
CODE = """
import sys
from pathlib import Path
import torch
from tests.zoo.training.loop.test_distributed import WAYS, net, settings
from tests.zoo.training.loop.test_fit import _fit
from zoo.training.loop.distributed import check_shared, join_world
from zoo.base.errors import UsageError

folder = Path(sys.argv[1])
for name in WAYS:
    model = net()
    config, options = settings(name)
    _fit(folder / name, model, config, **options)
    if join_world().first:
        torch.save(model.state_dict(), folder / name / "done.pt")
world = join_world()
check_shared(folder / "shared", world)
own = folder / f"own-{world.rank}"
try:
    check_shared(own, world)
except UsageError as error:
    (folder / f"said-{world.rank}.txt").write_text(str(error))
"""


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), features=4 * 36)


def settings(name: str):
    options = dict(WAYS[name])
    changes = {"freeze": Freezing(norm="freeze"), "augment": Augment(rotate=10, flip=True, noise=3.0)}
    return _config(epochs=3, batch_size=6, **(changes | options.pop("config"))), options


MEASURING = """
import sys
import time
from datetime import timedelta
from pathlib import Path
import numpy as np
import torch
from torch import nn
from tests.zoo.factories import make_input, make_samples
from zoo.training.evaluate import shared_logits
from zoo.training.loop import distributed

distributed._PATIENCE = timedelta(seconds=6)
world = distributed.join_world()
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
logits = {}
for images in (9, 5, 1):
    logits[str(images)] = shared_logits(model, make_samples(images, 3), make_input(8, "L"), batch_size=2)
np.savez(Path(sys.argv[1]) / f"{world.rank}.npz", **logits)
model.register_forward_pre_hook(lambda *_: time.sleep(1))
begin = time.monotonic()
if sys.argv[2] == "shared":
    shared_logits(model, make_samples(10, 3), make_input(8, "L"), batch_size=1)
elif world.first:
    for _ in range(10):
        model(torch.zeros(1, 1, 8, 8))
distributed.barrier(world)
assert time.monotonic() - begin > 4
"""


def torchrun(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    return subprocess.run(
        [*start, sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[4])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes of torchrun write."""
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(CODE, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_have_the_loss_curve_of_one(tmp_path, together, name):
    config, options = settings(name)
    alone = net()
    _fit(tmp_path, alone, config, **options)
    curves = []
    for folder in (tmp_path, together / name):
        with (folder / "log.csv").open() as stream:
            curves.append([(float(row["loss"]), float(row["validation_loss"])) for row in csv.DictReader(stream)])
    assert len(curves[0]) == 3
    assert curves[0] == [pytest.approx(pair, rel=1e-4) for pair in curves[1]]
    for key, tensor in torch.load(together / name / "done.pt", weights_only=True).items():
        assert torch.allclose(tensor, alone.state_dict()[key], atol=1e-4), key
    assert not _same(alone, net())


def test_measuring_is_shared_so_that_nobody_waits_longer_than_is_allowed(tmp_path):
    # Ten seconds of measuring where a process waits for six: five each.
    done = torchrun(MEASURING, tmp_path, "shared")
    assert done.returncode == 0, done.stderr[-3000:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        for images in (9, 5, 1):
            alone = torch_logits(model, DecodedImages(make_samples(images, 3), make_input(8, "L")), batch_size=2)
            assert np.array_equal(found[str(images)], alone)


def test_measuring_by_one_process_takes_longer_than_is_allowed(tmp_path):
    done = torchrun(MEASURING, tmp_path, "alone")
    assert done.returncode != 0
    assert "Timed out" in done.stderr


def test_folders_that_are_not_shared_are_refused_in_every_process(together):
    for rank in range(2):
        said = (together / f"said-{rank}.txt").read_text()
        assert f"process 1 does not see the files that process 0 writes to {together / f'own-{rank}'}; give" in said
        assert "one shared folder, as POCKETZOO_OUTPUT" in said
    assert list((together / "shared").iterdir()) == list((together / "own-0").iterdir()) == []


def test_one_process_leaves_no_mark(tmp_path):
    check_shared(tmp_path / "new", World(0, 1, torch.device("cpu")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_lost_connection_is_a_sentence(error, told):
    with pytest.raises(TrainingError if told else RuntimeError, match="was lost" if told else "mat1"), others_alive():
        raise error


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_cover_every_row_once(count, size):
    device = torch.device("cpu")
    parts = [list(range(count))[World(rank, size, device).rows(count)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
