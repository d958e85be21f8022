"""Whole residual blocks: found by what they do, dropped where the loss says so, and back from the file."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.export import export
from compress.prune import planning
from compress.prune.couplings import Part
from compress.prune.cutting import Structure
from compress.prune.depth import chosen_blocks, residual_blocks
from compress.prune.macs import Costs
from compress.prune.stage import plan, prune
from compress.prune.widths import OutOfReachError
from compress.quantize.stage import quantize
from compress.recalibrate import recalibrate
from compress.recover import recover
from tests.zoo.factories import TINY_VIT, make_card, make_dataset, make_input, make_samples
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Lora
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.explain.structure.summary import layers_of
from zoo.networks import checkpoint
from zoo.networks.lora import add_lora
from zoo.networks.registry import build, count_macs
from zoo.networks.shrink import Shortcut, drop_blocks
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import PruneConfig, QuantizeConfig, RecalibrateConfig, RecoverConfig

_ATTENTION = {"embed_dim": 16, "depth": 2, "num_heads": 2}

FAMILIES: dict[str, tuple[int, dict[str, Any], list[str]]] = {
    "convnextv2_atto": (
        32,
        {"depths": [1, 1, 2, 1], "dims": [8, 8, 16, 16]},
        [f"stages.{path}" for path in ("0.blocks.0", "1.blocks.0", "2.blocks.0", "2.blocks.1", "3.blocks.0")],
    ),
    "cnn5": (32, {"filters": 4, "dense": 8, "img_size": 32}, []),
    "densenet121": (32, {"growth_rate": 4, "block_config": [2, 2, 2, 2]}, []),
    "eva02_tiny_patch14_224": (28, _ATTENTION | {"img_size": 28}, ["blocks.0", "blocks.1"]),
    "resnet18": (32, {"layers": [2, 1, 1, 1], "channels": [8, 8, 16, 16]}, ["layer1.1"]),
    "resnet50": (32, {"layers": [1, 2, 1, 1], "channels": [8, 8, 16, 16]}, ["layer2.1"]),
    "swin_tiny_patch4_window7_224": (
        32,
        {"img_size": 32, "window_size": 2, "depths": [2, 1], "num_heads": [1, 2], "embed_dim": 8},
        ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"],
    ),
    "test_efficientnet": (32, {}, []),
    "vgg11_bn": (32, {"mlp_ratio": 0.01}, []),
    "vit_tiny_patch16_224": (32, TINY_VIT, ["blocks.0", "blocks.1"]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_every_family(name: str) -> None:
    size, arguments, wanted = FAMILIES[name]
    torch.manual_seed(0)
    model = build(name, classes=3, channels=3, arguments=arguments).eval()
    structure, before = Structure(model, make_input(size)), copy.deepcopy(model.state_dict())
    blocks = residual_blocks(structure, (3, size, size))
    assert [block.name for block in blocks] == wanted
    assert {block.kind for block in blocks} <= {"block"}
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    smaller = structure.copy()
    costs = Costs(structure, make_input(size), structure.parts).without(blocks)
    for block in blocks:
        smaller.remove(block, [0])
    found = costs.of("macs", [[len(part.units) for part in structure.parts]])
    assert found[0] == pytest.approx(count_macs(smaller.model, (3, size, size)))


class Branch(nn.Module):
    """What its function says of the input and of two linear layers' answer."""

    def __init__(self, combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.combine = combine

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.combine(inputs, self.body(inputs))


class Asking(nn.Module):
    """Cannot do without its block: it reads the block's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(4, 6), Branch(torch.add), nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.first(inputs))) * self.block.body[0].weight.sum()


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 6), Branch(torch.add), nn.Linear(6, 3)), ["1"]),
        # The innermost; a stage of blocks is none itself.
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.Sequential(Branch(torch.add)), nn.Linear(6, 3)), ["1.0"]),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Branch(lambda x, y: (x + y).relu()), nn.Linear(6, 3)),
            ["2"],
        ),
        (lambda: nn.Sequential(nn.Linear(4, 6), Branch(lambda x, y: (x + y).relu()), nn.Linear(6, 3)), []),
        (lambda: nn.Sequential(nn.Linear(4, 6), Branch(lambda x, y: 2 * x + y), nn.Linear(6, 3)), []),
        (lambda: nn.Sequential(nn.Linear(4, 6), Branch(lambda x, y: x * y.sigmoid()), nn.Linear(6, 3)), []),
        (lambda: nn.Sequential(nn.Linear(4, 6), Branch(lambda x, y: y), nn.Linear(6, 3)), []),
        (Asking, []),
    ],
)
def test_only_an_identity_shortcut_makes_a_block(model: Callable[[], nn.Module], found: list[str]) -> None:
    torch.manual_seed(0)
    structure = Structure(model().eval(), torch.zeros(1, 4))
    assert [block.name for block in residual_blocks(structure, (4,))] == found


def _sure_vit(dead: Sequence[int] = ()) -> nn.Module:
    """A network of four blocks whose logits are large, in some of which the branches add nothing."""
    torch.manual_seed(0)
    model = build("vit_tiny_patch16_224", classes=3, channels=1, arguments=TINY_VIT | {"depth": 4}).eval()
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            for layer in (block.attn.proj, block.mlp.fc2):
                nn.init.normal_(layer.weight, std=0.0 if index in dead else 0.2)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(model.head.weight, std=3.0)
    return model


def _as_it_answers(model: nn.Module, dataset: Dataset) -> Dataset:
    """The data set with the network's own answers as labels; its classifier is centred on the images before."""
    spec = make_input(32, "L")
    images = torch.stack(
        [DecodedImages(dataset.splits["train"], spec)[i][0] for i in range(len(dataset.splits["train"]))]
    )
    inputs = (images.float() / 255 - spec.mean[0]) / spec.std[0]
    with torch.no_grad():
        model.head.bias -= model(inputs).mean(0)
        answers = model(inputs).argmax(1).tolist()
    train = [
        dataclasses.replace(sample, label=label) for sample, label in zip(dataset.splits["train"], answers, strict=True)
    ]
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


def test_blocks_that_the_loss_does_not_miss_go_and_come_back_from_the_file(tmp_path: Path) -> None:
    model = _sure_vit(dead=[1, 2])
    dataset = _as_it_answers(model, make_dataset(per_split=32))
    card = make_card(
        architecture="vit_tiny_patch16_224",
        spec=make_input(32, "L"),
        stages=("train",),
        arguments=TINY_VIT | {"depth": 4},
    )
    paths = [tmp_path / f"{name}.safetensors" for name in ("whole", "pruned", "again")]
    checkpoint.save(model, card, paths[0])
    done = prune(paths[0], paths[1], PruneConfig(macs=0.53, depth="auto"), dataset=dataset)
    blocks = [step for step in done.steps if step.unit == "block"]
    assert {step.layer for step in blocks} == {"blocks.1", "blocks.2"}
    assert all((step.before, step.after) == (1, 0) and 0.2 < step.macs < 0.25 for step in blocks)
    assert not any(step.layer.startswith(("blocks.1.", "blocks.2.")) for step in done.steps)
    assert done.ratio <= 0.53
    pruned, found = checkpoint.load(paths[1])
    assert found.build.dropped == ("blocks.1", "blocks.2")
    assert found.lineage[-1].summary["blocks"] == 2
    assert count_macs(pruned, found.use.input) == found.inform.macs == done.macs_after
    prune(paths[1], paths[2], PruneConfig(macs=0.8), dataset=dataset)
    assert checkpoint.load(paths[2])[1].build.dropped == ("blocks.1", "blocks.2")
    nodes = []
    for path in paths[:2]:
        export(path, path.with_suffix(".onnx"))
        nodes.append(len(graph.load(path.with_suffix(".onnx"))[0].graph.node))
    assert nodes[1] < 0.7 * nodes[0]


def test_no_block_goes_where_widths_do_better() -> None:
    model = _sure_vit()
    dataset = _as_it_answers(model, make_dataset(per_split=32))
    images = DecodedImages(dataset.splits["train"], make_input(32, "L"))
    done = plan(model, make_input(32, "L"), PruneConfig(macs=0.95, depth="auto"), images=images)
    assert done.steps and "block" not in {step.unit for step in done.steps}


def test_without_images_every_block_stays_which_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    done = plan(_sure_vit(dead=[1, 2]), make_input(32, "L"), PruneConfig(macs=0.53, depth="auto"))
    assert done.steps and "block" not in {step.unit for step in done.steps}
    assert "every block stays: the loss, which decides that, takes labelled images" in capsys.readouterr().err


def test_blocks_go_on_the_way_to_a_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec = _sure_vit(dead=[1, 2]), make_input(32, "L")
    images = DecodedImages(_as_it_answers(model, make_dataset(per_split=32)).splits["train"], spec)
    whole = count_macs(model, spec)
    # A machine that needs 20 ms for all multiply-accumulates.
    monkeypatch.setattr(planning, "network_ms", lambda network, _: 20 * count_macs(network, spec) / whole)
    done = plan(model, spec, PruneConfig(latency_ms=10.7, depth="auto"), images=images)
    assert {step.layer for step in done.steps if step.unit == "block"} == {"blocks.1", "blocks.2"}
    assert done.latency_ms is not None and 10 < done.latency_ms <= 10.7


class Scripted:
    """Networks whose loss is known by how many blocks they lost; the labels are all 0."""

    def __init__(self, losses: Sequence[float | None]) -> None:
        self.losses, self.asked = losses, []

    def __call__(self, dropped: Sequence[Part]) -> nn.Module:
        self.asked.append([block.name for block in dropped])
        loss = self.losses[len(dropped)]
        if loss is None:
            raise OutOfReachError(0.9)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        with torch.no_grad():
            network[1].weight.zero_()
            network[1].bias.copy_(torch.tensor([-torch.tensor(loss).expm1().log(), 0.0]))
        return network


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([1.0, 0.9, 0.8, 0, 0.7], 4),
        ([1.0, 1.1, 0.8, 0, 0.9], 2),
        ([1.0, 1.1, 1.2, 0, 1.0], 0),
        ([None, 0.9, 0.95, 0, 1.0], 1),
        ([None, None, None, 0, None], 0),
    ],
)
def test_as_many_blocks_go_as_leave_the_smallest_loss(losses: list[float | None], best: int) -> None:
    model = nn.Sequential(nn.Flatten(), *(nn.Sequential(nn.Linear(64, 64)) for _ in range(4)), nn.Linear(64, 2))
    blocks = [Part(name=str(index), kind="block", units=((0,),)) for index in (1, 2, 3, 4)]
    images = DecodedImages(make_samples(8, classes=1), make_input(8, "L"))
    networks = Scripted(losses)
    found = chosen_blocks(model, dict.fromkeys(blocks, 0.1), images, networks)
    assert [len(names) for names in networks.asked] == [0, 1, 2, 4]
    assert [block.name for block in found] == networks.asked[[0, 1, 2, 4].index(best)]
    assert all(networks.asked[3][: len(names)] == names for names in networks.asked)


def test_blocks_are_ranked_by_what_the_loss_rises_for_what_they_save() -> None:
    class Add(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits + torch.tensor([self.value, 0.0])

    first = nn.Linear(64, 2)
    nn.init.zeros_(first.weight)
    model = nn.Sequential(nn.Flatten(), first, Add(0.5), Add(-0.2), Add(0.1))
    blocks = [Part(name=str(index), kind="block", units=((0,),)) for index in (2, 3, 4)]
    images = DecodedImages(make_samples(8, classes=1), make_input(8, "L"))
    for prices, wanted in (([0.1, 0.1, 0.1], ["3", "4", "2"]), ([0.9, 0.1, 0.01], ["3", "2", "4"])):
        networks = Scripted([4.0, 3.0, 2.0, 1.0])
        chosen_blocks(model, dict(zip(blocks, prices, strict=True)), images, networks)
        assert networks.asked[:3] == [[], wanted[:1], wanted[:2]]


def test_every_later_stage_works_on_what_is_left(tmp_path: Path) -> None:
    arguments = {"layers": [2, 1, 1, 1], "channels": [8, 8, 16, 16]}
    model, dataset = build("resnet18", classes=3, channels=1, arguments=arguments), make_dataset(per_split=16)
    card = make_card(architecture="resnet18", spec=make_input(32, "L"), stages=("train",), arguments=arguments)
    whole, path, made, graphs = (tmp_path / name for name in ("whole", "pruned", "made/model.safetensors", "graph"))
    checkpoint.save(model, card, whole)
    drop_blocks(model, ["layer1.1"])
    checkpoint.save(
        model, dataclasses.replace(card, build=dataclasses.replace(card.build, dropped=("layer1.1",))), path
    )
    recalibrate(path, path, RecalibrateConfig(batch_size=6), dataset=dataset)
    recover(
        path,
        whole,
        made,
        RecoverConfig(fit=FitConfig(epochs=1, batch_size=8), features=0.1),
        dataset=dataset,
        test=False,
    )
    recovered, found = checkpoint.load(made)
    assert found.build.dropped == ("layer1.1",)
    assert isinstance(recovered.get_submodule("layer1.1"), Shortcut)
    assert not any(layer.name.startswith("layer1.1") for layer in layers_of(recovered, (1, 32, 32)))
    export(made, graphs.with_suffix(".onnx"), dataset=dataset)
    settings = QuantizeConfig(images=8, method="static", max_drop=100, keep="any")
    quantize(graphs.with_suffix(".onnx"), graphs.with_suffix(".int8.onnx"), settings, dataset=dataset, timed=False)
    assert graph.read_card(graphs.with_suffix(".int8.onnx")).build.dropped == ("layer1.1",)


def test_adapters_are_added_to_what_is_left(tmp_path: Path) -> None:
    model = build("vit_tiny_patch16_224", classes=3, channels=1, arguments=TINY_VIT)
    drop_blocks(model, ["blocks.0"])
    assert add_lora(model, targets=["qkv"], rank=2, alpha=4.0) == ["blocks.1.attn.qkv"]
    lora = Lora(targets=("qkv",), rank=2, alpha=4.0)
    card = make_card(architecture="vit_tiny_patch16_224", spec=make_input(32, "L"), arguments=TINY_VIT)
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, dropped=("blocks.0",), lora=lora))
    checkpoint.save(model, card, tmp_path / "m")
    images = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(checkpoint.load(tmp_path / "m")[0](images), model.eval()(images))
