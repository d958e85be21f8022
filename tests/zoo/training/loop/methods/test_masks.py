"""Masks: exactly so many weights, chosen by the rule, and nothing else ever moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import TrainingError, UsageError
from zoo.networks.lora import add_lora
from zoo.networks.registry import build, zero_classifier
from zoo.training.loop.methods.masks import Mask, MaskedUpdate, choose

RULES = ("fisher", "gradient", "magnitude", "random")
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(6, 3, 32, 32, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCHES = [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])]


def _loss(_: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, targets)


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT | {"depth": 1})


def _resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet10t", classes=3, channels=3, arguments={"channels": [4, 4, 8, 8], "stem_width": 4})


class Small(nn.Module):
    """Logits [B, 2] of inputs [B, 3] through two features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        self.seen: list[bool] = []

    def get_classifier(self) -> nn.Linear:
        return self.head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.training)
        return self.head(self.body(inputs))


def _body_names(model: nn.Module) -> dict[str, int]:
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad and id(p) not in head}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fraction", [0.001, 0.0137, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("make", [_vit, _resnet])
def test_exactly_the_asked_number(make, fraction, rule):
    model = make()
    sizes = _body_names(model)
    masks = choose(model, Mask(fraction=fraction, by=rule), BATCHES, _loss)
    assert list(masks) == list(sizes)
    assert all(mask.dtype == torch.bool and mask.numel() == sizes[name] for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(fraction * sum(sizes.values()))


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_the_chosen_weights_move(optimizer, fraction, rule):
    model = _resnet().train()
    masks = choose(model, Mask(fraction=fraction, by=rule), BATCHES, _loss)
    before = copy.deepcopy(dict(model.named_parameters()))
    update = MaskedUpdate(model, masks)
    stepper = OPTIMIZERS[optimizer](model.parameters())
    for images, labels in BATCHES * 2:
        stepper.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        update.before_step(model)
        assert not any(
            parameter.grad[~masks[name]].any() for name, parameter in model.named_parameters() if name in masks
        )
        stepper.step()
        update.after_step(model)
    after = dict(model.named_parameters())
    moved = {name: (after[name] != before[name]) for name in masks}
    assert not any((moved[name] & ~masks[name]).any() for name in masks)
    allowed = sum(int(mask.sum()) for mask in masks.values())
    assert allowed == round(fraction * sum(mask.numel() for mask in masks.values()))
    # Weights of exactly zero without a gradient are not moved by decay either.
    assert 0.5 * allowed < sum(int(entry.sum()) for entry in moved.values()) <= allowed
    assert (after["fc.weight"] != before["fc.weight"]).any(dim=1).all(), "the classifier is free"


def test_decay_alone_would_move_the_held_weights():
    """The two calls are both needed: without the second, zero gradients do not hold a weight."""
    model = _resnet()
    masks = choose(model, Mask(fraction=0.01, by="magnitude"), (), _loss)
    before = model.conv1[0].weight.detach().clone()
    update = MaskedUpdate(model, masks)
    stepper = OPTIMIZERS["adamw"](model.parameters())
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    update.before_step(model)
    stepper.step()
    held = ~masks["conv1.0.weight"]
    assert (model.conv1[0].weight[held] != before[held]).all()
    update.after_step(model)
    assert torch.equal(model.conv1[0].weight[held], before[held])


def test_the_rules_by_hand():
    model = Small()
    with torch.no_grad():
        model.body.weight.copy_(torch.tensor([[1.0, -6.0, 2.0], [3.0, -4.0, 5.0]]))
        model.head.weight.copy_(torch.eye(2))
    inputs = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.0, 3.0]])
    batches = [(inputs[:1], torch.tensor([0])), (inputs[1:], torch.tensor([0]))]

    def loss(_: torch.Tensor, logits: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        return (logits * torch.tensor([1.0, 0.1])).sum(dim=1).mean()

    # Gradients of single images: row 0 is the image, row 1 a tenth of it.
    for rule, count, expected in (
        ("gradient", 2, [[0, 1, 1], [0, 0, 0]]),  # |mean|: 0, 1, 1.5
        ("fisher", 3, [[1, 1, 1], [0, 0, 0]]),  # mean square: 1, 2, 4.5, and a hundredth of these
        ("magnitude", 2, [[0, 1, 0], [0, 0, 1]]),
    ):
        mask = choose(model, Mask(fraction=count / 6, by=rule), batches, loss)["body.weight"]
        assert torch.equal(mask, torch.tensor(expected).bool()), rule
    single = choose(model, Mask(fraction=3 / 6, by="fisher"), batches, loss)
    together = [(inputs, torch.tensor([0, 0]))]
    assert torch.equal(
        choose(model, Mask(fraction=3 / 6, by="fisher"), together, loss)["body.weight"], single["body.weight"]
    )


def test_batches_of_other_sizes_weigh_by_their_images():
    model = Small()
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    inputs = torch.tensor([[9.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 4.0, 0.0], [0.0, 4.0, 0.0]])
    batches = [(inputs[:1], torch.zeros(1)), (inputs[1:], torch.zeros(3))]
    mask = choose(model, Mask(fraction=1 / 3, by="gradient"), batches, lambda _, logits, __: logits.sum(dim=1).mean())
    assert mask["body.weight"][:, 1].all(), "a mean of 12 / 4 exceeds one of 9 / 4"


def test_equal_scores_count_in_the_order_of_the_parameters():
    model = Small()
    nn.init.ones_(model.body.weight)
    mask = choose(model, Mask(fraction=4 / 6, by="magnitude"), (), _loss)["body.weight"]
    assert mask.flatten().tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("rule", RULES)
def test_choosing_changes_nothing_and_repeats(rule):
    model = _resnet().train()
    model.bn1.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    first, second = (choose(model, Mask(fraction=0.05, by=rule), iter(BATCHES), _loss) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_gradients_are_taken_in_evaluation_mode():
    model = Small().train()
    choose(model, Mask(fraction=0.5), [(torch.randn(3, 3), torch.tensor([0, 1, 0]))], _loss)
    assert model.seen == [False] * 3 and model.training


def test_another_seed_is_another_random_mask():
    one, other = (choose(_vit(), Mask(fraction=0.1, by="random", seed=seed), (), _loss) for seed in (0, 1))
    shared = sum(int((one[name] & other[name]).sum()) for name in one)
    assert 0 < shared < 0.2 * sum(int(mask.sum()) for mask in one.values())


@pytest.mark.parametrize("rule", ["fisher", "gradient"])
def test_a_zero_classifier_does_not_hide_the_gradients(rule):
    model = _vit()
    zero_classifier(model)
    masks = choose(model, Mask(fraction=0.05, by=rule), BATCHES, _loss)
    assert not model.head.weight.any()
    # Without a stand-in every score would be zero and the first parameters would win.
    assert sum(bool(mask.any()) for mask in masks.values()) > len(masks) / 2
    model.requires_grad_(False)
    model.blocks.requires_grad_(True)
    frozen_head = choose(model, Mask(fraction=0.05, by=rule), BATCHES, _loss)
    assert all(name.startswith("blocks.") for name in frozen_head) and not model.head.weight.requires_grad


def test_only_trainable_weights_count():
    model = _vit()
    add_lora(model, targets=["qkv"], rank=2, alpha=2.0)
    masks = choose(model, Mask(fraction=0.25, by="magnitude"), (), _loss)
    assert list(masks) == ["blocks.0.attn.qkv.lora_a", "blocks.0.attn.qkv.lora_b"]
    assert sum(int(mask.sum()) for mask in masks.values()) == (48 + 144) * 2 // 4
    assert not masks["blocks.0.attn.qkv.lora_b"].any(), "zero at the start"


def test_what_cannot_be_chosen():
    model = Small()
    with pytest.raises(UsageError, match=r"mask\.fraction 0\.05 of 6 trainable weights is none; raise it"):
        choose(model, Mask(fraction=0.05), (), _loss)
    with pytest.raises(UsageError, match=r"mask\.by = 'fisher' needs training images, got none"):
        choose(model, Mask(fraction=0.5), (), _loss)
    batch = (torch.full((1, 3), torch.inf), torch.tensor([0]))
    with pytest.raises(TrainingError, match="are not finite"):
        choose(model, Mask(fraction=0.5), [batch], _loss)
    batch = (torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(TrainingError, match="no gradient reaches the weights"):
        choose(model, Mask(fraction=0.5), [batch], _loss)


def test_a_mask_of_another_network():
    with pytest.raises(TrainingError, match=r"mask of body\.weight is \(1,\), the network has \(2, 3\)"):
        MaskedUpdate(Small(), {"body.weight": torch.ones(1).bool()})
    with pytest.raises(TrainingError, match=r"mask of gone is \(1,\), the network has no such parameter"):
        MaskedUpdate(Small(), {"gone": torch.ones(1).bool()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, r"mask\.fraction must be in \(0, 1\], got 0\.0"),
        ({"fraction": 1.5}, r"mask\.fraction must be in \(0, 1\], got 1\.5"),
        ({"by": "gradients"}, r"unknown mask\.by 'gradients'; did you mean gradient\?"),
        ({"images": 0}, r"mask\.images must be at least 1, got 0"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Mask(**changes)
