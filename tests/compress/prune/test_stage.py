"""Tests of compress.prune.stage and compress.prune.planning."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.prune import planning as reducing
from compress.prune.importance import IMPORTANCES
from compress.prune.stage import plan, prunable, prune, prune_model
from tests.zoo.factories import TINY_VIT, make_card, make_dataset, make_input, make_samples
from zoo.base.errors import ArtefactError, UsageError
from zoo.data.decoded import DecodedImages
from zoo.networks import checkpoint
from zoo.networks.registry import build, count_macs
from zoo.networks.shrink import attentions
from zoo.training.recipe import PruneConfig


def vit(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT | changes).eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet10t", classes=3, channels=3).eval()


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return build("lenet", classes=3, channels=1).eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("goal", [0.3, 0.5, 0.8])
def test_plan_comes_close_below_the_goal_and_changes_nothing(goal: float) -> None:
    model, spec = resnet(), make_input(32)
    before = copy.deepcopy(model.state_dict())
    done = plan(model, spec, PruneConfig(macs=goal))
    assert goal - 0.01 < done.ratio <= goal
    assert done.macs_before == count_macs(model, spec)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "config", [PruneConfig(macs=0.5), PruneConfig(params=0.4, scope="global"), PruneConfig(steps=3)]
)
def test_plan_is_what_pruning_does(config: PruneConfig) -> None:
    model, spec = resnet(), make_input(32)
    pruned, done = prune_model(model, spec, config)
    assert done == plan(model, spec, config)
    assert (count_macs(pruned, spec), parameters(pruned)) == (done.macs_after, done.parameters_after)
    assert (count_macs(model, spec), parameters(model)) == (done.macs_before, done.parameters_before)
    assert done.bytes_before - done.bytes_after > 4 * (done.parameters_before - done.parameters_after)
    share = done.ratio if config.goal[0] == "macs" else done.parameters_after / done.parameters_before
    assert config.goal[1] - 0.01 < share <= config.goal[1]
    assert len(done.steps) > 5
    for step in done.steps:
        assert pruned.get_submodule(step.layer).weight.shape[0] == step.after < step.before
        assert model.get_submodule(step.layer).weight.shape[0] == step.before
        assert step.after % 8 == 0
        assert 0 < step.macs < 0.3


def test_the_share_that_a_group_saves_is_what_pruning_it_alone_saves() -> None:
    model, spec = lenet(), make_input(28, "L")
    (step, *_) = plan(model, spec, PruneConfig(macs=0.5, round_to=1)).steps
    alone = build("lenet", classes=3, channels=1)
    structure = reducing.Structure(alone, spec)
    structure.remove(structure.parts[0], range(step.before - step.after))
    structure.finish()
    assert step.layer == structure.parts[0].name
    assert step.macs == pytest.approx(1 - count_macs(alone, spec) / count_macs(model, spec), abs=1e-5)


def test_transformers_lose_heads_and_hidden_units_but_no_embedding() -> None:
    model, spec = vit(), make_input(32)
    pruned, done = prune_model(model, spec, PruneConfig(macs=0.6))
    assert {step.unit for step in done.steps} == {"head", "hidden unit"}
    assert pruned.embed_dim == pruned.cls_token.shape[-1] == 48
    for attention in attentions(pruned).values():
        assert attention.num_heads in (1, 2)
        assert attention.head_dim == 16
        assert attention.scale == 16**-0.5
        assert attention.qkv.out_features == 3 * attention.num_heads * 16


def test_head_dimensions_and_the_embedding_go_where_they_are_asked_for() -> None:
    spec = make_input(32)
    pruned, done = prune_model(vit(), spec, PruneConfig(macs=0.4, head_dims=True, embedding=True))
    units = {step.unit for step in done.steps}
    assert {"head dimension", "embedding"} <= units
    assert 8 in {attention.head_dim for attention in attentions(pruned).values()} <= {8, 16}
    assert pruned.cls_token.shape[-1] < 48
    assert count_macs(pruned, spec) == done.macs_after


def test_removed_heads_are_the_weakest() -> None:
    model = vit()
    attention = model.blocks[0].attn
    with torch.no_grad():
        for part in range(3):
            attention.qkv.weight[part * 48 + 16 : part * 48 + 32] = 0  # the second of three heads
            attention.qkv.bias[part * 48 + 16 : part * 48 + 32] = 0
        attention.proj.weight[:, 16:32] = 0
    kept_rows = torch.cat([attention.qkv.weight[part * 48 :][:48][[*range(16), *range(32, 48)]] for part in range(3)])
    pruned, _ = prune_model(model, make_input(32), PruneConfig(macs=0.8))
    assert torch.equal(pruned.blocks[0].attn.qkv.weight, kept_rows)


def test_pruning_dead_hidden_units_changes_no_answer() -> None:
    model, spec = vit(depth=1), make_input(32)
    mlp = model.blocks[0].mlp
    dead = 64
    with torch.no_grad():
        mlp.fc1.weight[:dead] = 0
        mlp.fc1.bias[:dead] = 0
        mlp.fc2.weight[:, :dead] = 0
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # Ranked over all groups, nothing is less important than what is zero.
    pruned, done = prune_model(model, spec, PruneConfig(macs=0.85, scope="global"))
    (step,) = done.steps
    assert (step.layer, step.unit) == ("blocks.0.mlp.fc1", "hidden unit")
    assert 0 < step.before - step.after <= dead
    with torch.inference_mode():
        assert torch.allclose(pruned(images), model(images), atol=1e-5)


def test_the_global_scope_leaves_a_share_of_every_group() -> None:
    model, spec = resnet(), make_input(32)
    with torch.no_grad():
        model.layer4[0].conv1.weight.mul_(1e-3)
    done = plan(model, spec, PruneConfig(params=0.3, scope="global", most=0.75, steps=2))
    assert min(step.after / step.before for step in done.steps) >= 0.25


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_prunes_to_the_same_size(importance: str) -> None:
    images = DecodedImages(make_samples(6, classes=3), make_input(32))
    pruned, done = prune_model(resnet(), make_input(32), PruneConfig(macs=0.5, importance=importance), images=images)
    assert 0.49 < done.ratio <= 0.5
    assert torch.isfinite(pruned(torch.zeros(1, 3, 32, 32))).all()


def test_random_importance_is_seeded() -> None:
    first, again, other = (
        prune_model(lenet(), make_input(28, "L"), PruneConfig(importance="random", seed=seed))[0].state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(first[name].shape == other[name].shape and torch.equal(first[name], other[name]) for name in first)


def test_impossible_goals_and_unknown_names() -> None:
    model, spec = lenet(), make_input(28, "L")
    with pytest.raises(
        UsageError, match=r"leave \d+% of the multiply-acc.* raise prune.macs or lower .*round_to \(64\)"
    ):
        plan(model, spec, PruneConfig(macs=0.01, round_to=64))
    with pytest.raises(UsageError, match=r"of the parameters, 1% is out of reach; raise prune.params"):
        plan(model, spec, PruneConfig(params=0.01, round_to=64))
    with pytest.raises(UsageError, match=r"in \(0, 1\); got 1.5"):
        PruneConfig(macs=1.5)
    with pytest.raises(UsageError, match=r"prune\.depth.*did you mean auto"):
        PruneConfig(depth="autos")
    with pytest.raises(UsageError, match="did you mean l2"):
        plan(model, spec, PruneConfig(importance="l22"))
    with pytest.raises(UsageError, match="have none; use --importance l2"):
        plan(model, spec, PruneConfig(importance="bn"))


class TestLatency:
    """The search for a latency, on a machine that needs 1 ms and 20 ms for all multiply-accumulates."""

    def search(self, monkeypatch: pytest.MonkeyPatch, wanted: float) -> tuple[float, float, int]:
        model, spec = resnet(), make_input(32)
        whole, asked = count_macs(model, spec), []

        def machine(network: nn.Module, spec: object) -> float:
            asked.append(count_macs(network, make_input(32)) / whole)
            return 1 + 20 * asked[-1]

        monkeypatch.setattr(reducing, "network_ms", machine)
        done = plan(model, spec, PruneConfig(latency_ms=wanted))
        assert done.latency_ms == pytest.approx(1 + 20 * done.ratio, abs=1e-3)
        return done.ratio, done.latency_ms or 0, len(asked)

    @pytest.mark.parametrize("wanted", [18.0, 10.0, 5.0])
    def test_it_ends_within_five_percent(self, monkeypatch: pytest.MonkeyPatch, wanted: float) -> None:
        _, found, tries = self.search(monkeypatch, wanted)
        assert 0.95 * wanted <= found <= wanted
        assert tries <= 4

    def test_the_nearest_candidate_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match=r"0.5 ms are out of reach .* the narrowest network takes 1\.\d+ ms at \d"):
            self.search(monkeypatch, 0.5)

    def test_a_network_that_is_fast_enough_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UsageError, match=r"takes 21.00 ms already, .* asks for 30; ask for less than 21.00 ms, or"):
            self.search(monkeypatch, 30)


class Padded(nn.Module):
    """A shortcut that pads channels with zeros, which torch-pruning's graph does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(images)
        padded = nn.functional.pad(features, (0, 0, 0, 0, 8, 8))
        return self.head((self.second(features) + padded).mean((2, 3)))


def test_what_cannot_be_pruned_is_refused_early() -> None:
    with pytest.raises(ArtefactError, match="Padded cannot be pruned"):
        prunable(Padded(), make_input(32))
    with pytest.raises(ArtefactError, match="Padded cannot be pruned"):
        prune_model(Padded(), make_input(32), PruneConfig(round_to=1))
    with pytest.raises(ArtefactError, match="no layer whose channels could be pruned"):
        prunable(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)), make_input(32))
    model = resnet()
    prunable(model, make_input(32))
    assert not model.training


def test_the_stage_from_file_to_file(tmp_path: Path) -> None:
    source, target, dataset = tmp_path / "a.safetensors", tmp_path / "b.safetensors", make_dataset()
    checkpoint.save(lenet(), make_card(spec=make_input(28, "L"), stages=("train",)), source)
    config = PruneConfig(macs=0.5, importance="taylor", scope="global", images=8)
    done = prune(source, target, config, dataset=dataset, name="small")
    pruned, card = checkpoint.load(target)
    assert (card.name, card.inform.macs, card.inform.parameters) == ("small", done.macs_after, parameters(pruned))
    entry, metrics = card.lineage[-1], card.metrics("validation")
    assert metrics is not None
    assert (entry.stage, entry.config["importance"], entry.seed) == ("prune", "taylor", 0)
    assert entry.summary["macs_ratio"] == round(done.ratio, 4)
    assert entry.summary["parts"] == len(done.steps) > 0
    assert (entry.summary["top1_before"], entry.summary["top1_after"]) == (None, metrics.top1)
    again = tmp_path / "c.safetensors"
    prune(target, again, PruneConfig(macs=0.8), dataset=dataset)
    assert checkpoint.read_card(again).lineage[-1].summary["top1_before"] == metrics.top1


def test_taylor_without_a_data_set_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    checkpoint.save(lenet(), make_card(spec=make_input(28, "L"), stages=("train",)), source)
    with pytest.raises(UsageError, match="name their data set with --data"):
        prune(source, tmp_path / "b.safetensors", PruneConfig(importance="taylor"))
    assert not (tmp_path / "b.safetensors").exists()


class TestExample:
    """Any module with an example of its input."""

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 5 * 3, 10),
        )

    @pytest.mark.parametrize("config", [PruneConfig(macs=0.5), PruneConfig(params=0.5, scope="global", steps=2)])
    def test_it_is_pruned_like_a_network_with_an_input(self, model: nn.Module, config: PruneConfig) -> None:
        example = torch.rand(4, 2, 12, 8)
        prunable(model, example)
        pruned, done = prune_model(model, example, config)
        assert plan(model, example, config) == done
        assert done.importance == "l2"
        assert done.macs_before == 24 * 18 * 96 + 32 * 216 * 15 + 10 * 480
        one, two = (layer.weight.shape[0] for layer in (pruned[0], pruned[2]))
        assert done.macs_after == one * 18 * 96 + two * one * 9 * 15 + 10 * two * 15 == count_macs(pruned, (2, 12, 8))
        ratio = done.ratio if config.goal[0] == "macs" else done.parameters_after / done.parameters_before
        assert 0.2 < ratio <= 0.5
        assert pruned(example).shape == (4, 10)

    def test_double_precision_stays(self, model: nn.Module) -> None:
        pruned, done = prune_model(model.double(), torch.zeros(1, 2, 12, 8), PruneConfig(macs=0.6))
        assert done.ratio <= 0.6
        assert pruned(torch.zeros(1, 2, 12, 8, dtype=torch.float64)).dtype == torch.float64

    def test_what_needs_more_than_an_example(self, model: nn.Module) -> None:
        example = torch.zeros(1, 2, 12, 8)
        with pytest.raises(UsageError, match=r"reads images.*\.card\.Input instead, or use the importance l2"):
            plan(model, example, PruneConfig(importance="taylor"))
        with pytest.raises(UsageError, match=r"latency_ms exports the network.*or the goal macs or params"):
            plan(model, example, PruneConfig(latency_ms=1.0))
        with pytest.raises(UsageError, match=r"with its batch, \[B, \.\.\.\], got \[2\]"):
            plan(model, torch.zeros(2), PruneConfig())


@pytest.mark.parametrize(("config", "words"), [(PruneConfig(macs=0.5), "multiply"), (PruneConfig(params=0.5), "param")])
def test_a_broken_promise_is_an_error(monkeypatch: pytest.MonkeyPatch, config: PruneConfig, words: str) -> None:
    class Cheap(reducing.Costs):
        """Believes that every width costs two thirds of what it does."""

        def of(self, goal: str, left: object) -> object:
            return super().of(goal, left) / 1.5

    monkeypatch.setattr(reducing, "Costs", Cheap)
    with pytest.raises(ArtefactError, match=rf"ResNet costs more .* of the {words}.*at most 50.00% were promised"):
        prune_model(resnet(), make_input(32), config)


def test_scores_that_are_no_numbers() -> None:
    model, spec = lenet(), make_input(28, "L")
    images = DecodedImages(make_samples(6, classes=3), spec)
    with torch.no_grad():
        next(model.parameters())[0] = torch.inf
    with pytest.raises(ArtefactError, match=r"LeNet: the importance taylor of .* is no number.*use --importance l2"):
        prune_model(model, spec, PruneConfig(importance="taylor"), images=images)
    with pytest.raises(ArtefactError, match=r"LeNet: the importance l2 of .* so its weights are not finite"):
        prune_model(model, spec, PruneConfig(importance="l2"))


def test_what_is_out_of_reach_is_told_as_a_share_of_the_whole_network_in_any_number_of_steps() -> None:
    shares = []
    for steps in (1, 3):
        with pytest.raises(UsageError, match="out of reach") as caught:
            plan(resnet(), make_input(32), PruneConfig(macs=0.001, importance="l2", steps=steps))
        shares.append(str(caught.value).split("%")[0])
    assert shares[0] == shares[1]
