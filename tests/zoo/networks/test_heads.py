"""Other classifiers on a network's features, through files, export and pruning."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from compress.export import export
from compress.prune.stage import prune
from tests.zoo.factories import TINY_VIT, make_card, make_input
from zoo.artefact.card import Head, from_json, to_json
from zoo.base.errors import CardError, UsageError
from zoo.networks import checkpoint
from zoo.networks.heads import add_head, reorder_head, reset_head
from zoo.networks.registry import build, classifier, classifier_names, classifier_width, count_macs
from zoo.training.recipe import PruneConfig

MLP = Head(kind="mlp", hidden=24, dropout=0.25)
NETS = {
    "cnn5": {"filters": 4, "dense": 16, "img_size": 32},
    "resnet10t": {"channels": (8, 8, 16, 16)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 2,
        "depths": (1, 1),
        "num_heads": (1, 2),
        "embed_dim": 8,
    },
    "vit_tiny_patch16_224": TINY_VIT,
}
WIDTHS = {"cnn5": 16, "resnet10t": 16, "swin_tiny_patch4_window7_224": 16, "vit_tiny_patch16_224": 48}


def _net(name: str, head: Head | None = MLP) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, classes=7, channels=3, arguments=NETS[name]).eval()
    if head:
        add_head(model, head, 3)
    return model


def _card(name: str, model: nn.Module, head: Head | None = MLP):
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in NETS[name].items()}
    card = make_card(architecture=name, spec=make_input(32), stages=("train",), arguments=arguments)
    inform = dataclasses.replace(card.inform, macs=count_macs(model, card.use.input))
    return dataclasses.replace(card, build=dataclasses.replace(card.build, head=head), inform=inform)


def _stir(model: nn.Module) -> nn.Module:
    """Weights and statistics as after training: a fresh head answers zero to everything."""
    generator = torch.Generator().manual_seed(2)
    for module in classifier(model).modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def _images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def _logits(model: nn.Module) -> torch.Tensor:
    return model(_images())


@pytest.mark.parametrize("name", NETS)
def test_an_mlp_stands_where_the_classifier_was(name):
    model = _net(name, None)
    before = classifier_names(model)
    head = add_head(model, MLP, 3)
    kinds = [nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in head] == kinds
    assert (head[0].num_features, head[1].out_features, head[4].p) == (WIDTHS[name], 24, 0.25)
    assert classifier(model) is head
    assert classifier_names(model) == before
    assert classifier_width(model) == 3
    assert torch.equal(_logits(model), torch.zeros(3, 3))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("hidden", [12, 0])
def test_a_cosine_answers_by_the_direction_of_features_alone(name, hidden):
    model = _net(name, Head(kind="cosine", hidden=hidden))
    head = _stir(model) and classifier(model)
    assert classifier_width(model) == 3
    features = torch.rand(2, WIDTHS[name], generator=torch.Generator().manual_seed(3))
    first = head[0](features) if hidden else features
    wanted = first / first.norm(dim=1, keepdim=True) @ head[-1].weight.T + head[-1].bias
    torch.testing.assert_close(head(features), wanted)
    add_head(model, Head(kind="cosine", hidden=4), 5)
    assert [tuple(p.shape) for p in classifier(model).parameters()] == [(4, WIDTHS[name]), (4,), (5, 4), (5,)]


def test_outputs_in_another_order():
    model = _stir(_net("resnet10t"))
    before = _logits(model)
    reorder_head(model, [2, 0, 1])
    assert torch.equal(_logits(model), before[:, [2, 0, 1]])


def test_a_linear_head_replaces_an_mlp():
    model = _net("resnet10t")
    head = add_head(model, Head(), 4)
    assert isinstance(head, nn.Linear) and (head.in_features, head.out_features) == (16, 4)
    assert model.num_classes == 4


@pytest.mark.parametrize("name", NETS)
def test_it_comes_back_from_its_file_and_exports(name, tmp_path):
    model = _stir(_net(name))
    checkpoint.save(model, _card(name, model), tmp_path / "m")
    loaded, card = checkpoint.load(tmp_path / "m")
    assert card.build.head == MLP
    assert torch.equal(_logits(loaded), _logits(model))
    exported = export(tmp_path / "m", tmp_path / "m.onnx")
    assert exported.lineage[-1].summary["parity"] <= 1e-4
    assert _logits(model).std() > 0.01


@pytest.mark.parametrize("name", ["cnn5", "resnet10t", "vit_tiny_patch16_224"])
def test_it_survives_pruning(name, tmp_path):
    model = _stir(_net(name))
    checkpoint.save(model, _card(name, model), tmp_path / "m")
    done = prune(tmp_path / "m", tmp_path / "p", PruneConfig(params=0.5, round_to=2))
    pruned, card = checkpoint.load(tmp_path / "p")
    assert card.inform.parameters <= 0.5 * done.parameters_before
    assert classifier_width(pruned) == 3
    assert classifier(pruned)[5].in_features == classifier(pruned)[1].out_features == classifier(pruned)[3].num_features
    if name != "vit_tiny_patch16_224":  # of a transformer only heads and the MLPs inside blocks are pruned
        assert classifier(pruned)[1].out_features < 24


@pytest.mark.parametrize("head", [None, MLP])
def test_another_set_of_labels(head):
    model = _stir(_net("resnet10t", head))
    hidden = [name for name, _ in classifier(model).named_parameters()][:-2]
    old = {name: classifier(model).get_parameter(name).clone() for name in hidden}
    reset_head(model, 5)
    assert classifier_width(model) == model.num_classes == 5
    assert torch.equal(_logits(model), torch.zeros(3, 5))
    assert all(torch.equal(classifier(model).get_parameter(name), tensor) for name, tensor in old.items())


def test_several_heads_are_all_reset():
    model = build("deit_tiny_distilled_patch16_224", classes=3, channels=3, arguments=TINY_VIT).eval()
    reset_head(model, 5)
    assert (model.head.out_features, model.head_dist.out_features) == (5, 5)
    assert torch.equal(_logits(model), torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("deit_tiny_distilled_patch16_224", TINY_VIT, r"VisionTransformerDistilled \(head, head_dist\) is no single"),
        ("dla34", {"channels": (8,) * 6}, r"classifier of DLA \(fc\) is no single linear layer"),
    ],
)
def test_networks_that_cannot_have_another_head(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        add_head(build(name, classes=3, channels=3, arguments=arguments), MLP, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "mlpp"}, "unknown head.kind 'mlpp'; did you mean mlp"),
        ({"hidden": 0}, "head.hidden: expected a width of at least 1, got 0"),
        ({"dropout": 1.0}, r"head.dropout: expected a share in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(UsageError, match=message):
        Head(**fields)


def test_a_card_with_a_wrong_head_is_named():
    text = to_json(_card("resnet10t", _net("resnet10t"))).replace('"mlp"', '"transformer"')
    with pytest.raises(CardError, match=r"file: unknown head.kind 'transformer'"):
        from_json(text, where="file")
