"""Adapters: what they freeze, where they start, and their exact merge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.artefact.card import Lora
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.lora import LoraLinear, adaptable, adapter_state, add_card_lora, add_lora, has_lora, merge_lora
from zoo.networks.registry import build
from zoo.networks.shrink import set_heads

TARGETS = ("qkv", "proj", "fc1", "fc2")
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT).eval()


def _randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.lora_b, std=0.05)


def test_what_can_be_adapted():
    model = _vit()
    before = list(model.state_dict())
    assert adaptable(model, TARGETS) and adaptable(model, ["q", "blocks.*.fc1"])
    assert not adaptable(model, ["qkv", "gate"])
    assert not adaptable(model, ["head"]), "the classifier is trained whole"
    assert list(model.state_dict()) == before


def test_every_target_of_every_block_is_wrapped():
    model = _vit()
    wrapped = add_lora(model, targets=TARGETS, rank=2, alpha=4.0)
    places = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert wrapped == [f"blocks.{block}.{place}" for block in (0, 1) for place in places]
    qkv = model.blocks[0].attn.qkv
    assert isinstance(qkv, LoraLinear) and has_lora(model)
    assert (qkv.lora_a.shape, qkv.lora_b.shape, qkv.scaling) == ((2, 48), (144, 2), 2.0)


def test_only_adapters_and_classifier_are_trainable():
    model = _vit()
    add_lora(model, targets=TARGETS, rank=2, alpha=4.0)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("head.") for name in trainable)
    # (48 + 144), (48 + 48), 2 x (48 + 192), each times rank 2, in two blocks; and the classifier
    expected = 2 * 2 * (192 + 96 + 2 * 240) + 48 * 3 + 3
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_training_moves_nothing_else():
    model = _vit().train()
    add_lora(model, targets=["qkv"], rank=2, alpha=4.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    adapters = {f"blocks.{block}.attn.qkv.lora_{part}" for block in (0, 1) for part in "ab"}
    assert changed == adapters | {"head.weight", "head.bias"}


@torch.no_grad()
def test_step_zero_is_the_unadapted_network():
    model = _vit()
    before = model(IMAGES)
    add_lora(model, targets=TARGETS, rank=8, alpha=16.0)
    assert torch.equal(model(IMAGES), before)


@settings(max_examples=15)
@given(st.integers(1, 16), st.floats(0.1, 32), st.sets(st.sampled_from(TARGETS), min_size=1), st.integers(0, 99))
@torch.no_grad()
def test_merging_is_exact(rank, alpha, targets, seed):
    model = _vit()
    names = list(model.state_dict())
    plain = model(IMAGES)
    torch.manual_seed(seed)
    count = len(add_lora(model, targets=sorted(targets), rank=rank, alpha=alpha))
    _randomise(model)
    before = model(IMAGES)
    assert not torch.equal(before, plain)
    assert merge_lora(model) == count == 2 * len(targets)
    after = model(IMAGES)
    # Relative to the size of the logits, which grows with alpha / rank.
    assert (after - before).abs().max() <= 1e-5 * max(1.0, before.abs().max().item())
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert list(model.state_dict()) == names and not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_merged_weight_is_the_papers_formula(bias):
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(5, 4, bias=bias), rank=2, alpha=6.0)
    nn.init.normal_(layer.lora_b)
    merged = layer.merged()
    torch.testing.assert_close(merged.weight, layer.base.weight + 3.0 * layer.lora_b @ layer.lora_a)
    assert (merged.bias is None) is not bias


@pytest.mark.parametrize("target", ["fc1", "v", "q", "blocks.1.*"])
@pytest.mark.parametrize("rslora", [True, False])
@torch.no_grad()
def test_a_card_describes_the_same_adapters(target, rslora):
    ours, cards = _vit(), _vit()
    add_lora(ours, targets=[target], rank=3, alpha=4.0, rslora=rslora)
    _randomise(ours)
    add_card_lora(cards, Lora(targets=(target,), rank=3, alpha=4.0, rslora=rslora))
    cards.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(cards(IMAGES), ours(IMAGES))


@pytest.mark.parametrize(
    ("targets", "rank", "message"),
    [
        (
            ["qvk"],
            2,
            r"LoRA target 'qvk' matches no linear layer; did you mean qkv\? the network has: fc1, fc2, k, proj",
        ),
        (["qkv", "head"], 2, r"LoRA target 'head' matches no linear layer"),
        ([], 2, r"LoRA needs at least one target layer"),
        (["qkv"], 0, r"LoRA's rank must be at least 1, got 0"),
        (["blocks.2.*"], 2, r"LoRA target 'blocks\.2\.\*' matches no linear layer; did you mean blocks\."),
        (
            ["qkv", "v"],
            2,
            r"name blocks\.0\.attn\.qkv as a whole and in part; give either 'qkv' \(one adapter\) or 'q'",
        ),
    ],
)
def test_what_is_refused(targets, rank, message):
    model = _vit()
    with pytest.raises(UsageError, match=message):
        add_lora(model, targets=targets, rank=rank, alpha=1.0)
    assert not has_lora(model) and all(p.requires_grad for p in model.parameters())


def test_a_network_without_linear_layers():
    with pytest.raises(UsageError, match="matches no linear layer; the network has: none"):
        add_lora(build("lenet", classes=2, channels=1), targets=["qkv"], rank=1, alpha=1.0)


def test_nothing_to_merge():
    with pytest.raises(ArtefactError, match="no LoRA adapters to merge"):
        merge_lora(_vit())


THIRDS = {"q": slice(0, 48), "k": slice(48, 96), "v": slice(96, 144)}


@pytest.mark.parametrize("targets", [["q"], ["k"], ["v"], ["v", "q"], ["q", "k", "v"], ["blocks.*.qkv.v", "q"]])
@torch.no_grad()
def test_thirds_of_qkv_have_adapters_of_their_own(targets):
    model = _vit()
    frozen = model.blocks[1].attn.qkv.weight.clone()
    assert add_lora(model, targets=targets, rank=2, alpha=3.0) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    _randomise(model)
    layer = model.blocks[1].attn.qkv
    assert layer.slices == tuple(name for name in THIRDS if name in {target[-1] for target in targets})
    assert (layer.lora_a.shape, layer.lora_b.shape) == ((len(targets), 2, 48), (len(targets), 48, 2))
    before = model(IMAGES)
    merge_lora(model)
    change = model.blocks[1].attn.qkv.weight - frozen
    for name, rows in THIRDS.items():
        if name in layer.slices:
            index = layer.slices.index(name)
            torch.testing.assert_close(change[rows], 1.5 * layer.lora_b[index] @ layer.lora_a[index])
            assert torch.linalg.matrix_rank(change[rows], rtol=1e-3) == 2
        else:
            assert not change[rows].any()
    torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=1e-5)
    assert torch.equal(model(IMAGES).argmax(1), before.argmax(1))


def test_a_third_changes_its_own_answers_only():
    model = _vit()
    base = model.blocks[0].attn.qkv
    layer = LoraLinear(base, rank=2, alpha=2.0, slices=("k",))
    nn.init.normal_(layer.lora_b)
    tokens = torch.randn(2, 5, 48)
    change = layer(tokens) - base(tokens)
    assert change.shape == (2, 5, 144)
    assert not change[..., THIRDS["q"]].any() and not change[..., THIRDS["v"]].any()
    torch.testing.assert_close(change[..., THIRDS["k"]], tokens @ (layer.lora_b[0] @ layer.lora_a[0]).T)


def test_thirds_are_of_the_layer_where_heads_were_pruned():
    """Two of three heads: the fused layer has 3 x 32 rows for 48 features."""
    model = _vit()
    for block in model.blocks:
        rows = torch.cat([torch.arange(third, third + 32) for third in (0, 48, 96)])
        block.attn.qkv = _rows(block.attn.qkv, rows)
        block.attn.proj = _columns(block.attn.proj, 32)
        set_heads(block.attn, 2)
    add_lora(model, targets=["q", "v"], rank=4, alpha=4.0)
    _randomise(model)
    layer = model.blocks[0].attn.qkv
    assert (layer.lora_a.shape, layer.lora_b.shape) == ((2, 4, 48), (2, 32, 4))
    with torch.no_grad():
        before = model(IMAGES)
        merge_lora(model)
        torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=1e-5)
    assert model.blocks[0].attn.qkv.weight.shape == (96, 48)


def _rows(layer: nn.Linear, rows: torch.Tensor) -> nn.Linear:
    smaller = nn.Linear(layer.in_features, len(rows))
    smaller.weight, smaller.bias = nn.Parameter(layer.weight[rows].clone()), nn.Parameter(layer.bias[rows].clone())
    return smaller


def _columns(layer: nn.Linear, count: int) -> nn.Linear:
    smaller = nn.Linear(count, layer.out_features)
    smaller.weight, smaller.bias = nn.Parameter(layer.weight[:, :count].clone()), layer.bias
    return smaller


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("blocks.1.mlp.fc1", ["blocks.1.mlp.fc1"]),
        ("blocks.1.*.fc[12]", ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]),
        ("blocks.0.attn.*", ["blocks.0.attn.qkv", "blocks.0.attn.proj"]),
        ("*.qkv.q", ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
        ("proj", ["blocks.0.attn.proj", "blocks.1.attn.proj"]),
    ],
)
def test_whole_names_and_patterns(target, layers):
    model = _vit()
    assert add_lora(model, targets=[target], rank=1, alpha=1.0) == layers
    assert [name for name, module in model.named_modules() if isinstance(module, LoraLinear)] == layers
    slices = {model.get_submodule(name).slices for name in layers}
    assert slices == ({("q",)} if target.endswith("qkv.q") else {()})


@pytest.mark.parametrize(
    ("rank", "alpha", "rslora", "scaling"),
    [(8, 4.0, False, 0.5), (3, 1.0, False, 1 / 3), (16, 8.0, True, 2.0), (2, 1.0, True, 2**-0.5)],
)
def test_the_scale_is_not_rounded(rank, alpha, rslora, scaling):
    layer = LoraLinear(nn.Linear(4, 4), rank=rank, alpha=alpha, rslora=rslora)
    assert layer.scaling == pytest.approx(scaling, rel=1e-12)


def test_dropout_acts_on_the_adapters_and_in_training_only():
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(64, 3), rank=2, alpha=2.0, dropout=0.5)
    nn.init.normal_(layer.lora_b)
    inputs = torch.ones(1, 64)
    answers = {tuple(layer.train(mode)(inputs)[0].tolist()) for mode in (True, False) for _ in range(3)}
    assert len(answers) == 4, "three in training, one in evaluation"
    assert torch.equal(layer.base(inputs), layer.base(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_rounds_once(dtype):
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(32, 30).to(dtype), rank=4, alpha=1.0, slices=("q", "v"))
    nn.init.normal_(layer.lora_b)
    merged = layer.merged()
    assert merged.weight.dtype == merged.bias.dtype == layer.lora_a.dtype == dtype
    exact = layer.base.weight.detach().double().reshape(3, 10, 32).clone()
    for index, third in enumerate((0, 2)):
        exact[third] += 0.25 * layer.lora_b[index].double() @ layer.lora_a[index].double()
    assert torch.equal(merged.weight, exact.reshape(30, 32).to(dtype))


@pytest.mark.parametrize("targets", [["qkv"], ["q", "v"]])
@pytest.mark.parametrize("architecture", ["beit_base_patch16_224", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_networks_that_read_the_weights_themselves(architecture, targets):
    small = {"embed_dim": 24, "num_heads": 3, "img_size": 32}
    own = {"patch_size": 8, "depth": 1} if architecture.startswith("beit") else {"depths": (1, 1), "window_size": 4}
    own |= {"num_heads": (3, 3)} if architecture.startswith("swin") else {}
    model = build(architecture, classes=3, channels=3, arguments=small | own).eval()
    # They start with almost nothing of the attention's output, and almost without a classifier.
    for parameter in model.parameters():
        parameter += 0.5 * (parameter.ndim == 1)
    nn.init.normal_(model.get_classifier().weight)
    plain = model(IMAGES)
    add_lora(model, targets=targets, rank=2, alpha=4.0)
    assert torch.equal(model(IMAGES), plain)
    _randomise(model)
    adapted = model(IMAGES)
    assert not torch.allclose(adapted, plain, atol=1e-4)
    merge_lora(model)
    torch.testing.assert_close(model(IMAGES), adapted, rtol=0, atol=1e-5)


def test_their_adapters_learn_and_dropout_is_refused():
    layer = LoraLinear(nn.Linear(6, 9), rank=2, alpha=2.0, dropout=0.1, slices=("v",))
    layer.eval().weight.sum().backward()
    assert layer.lora_b.grad.any() and layer.base.weight.grad is None
    with pytest.raises(UsageError, match=r"dropout cannot act; set lora\.dropout to 0"):
        layer.train().weight  # noqa: B018


class Bare(nn.Module):
    """As in torchvision's ViT: one bare parameter for q, k and v."""

    def __init__(self, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.attn = attention or nn.MultiheadAttention(6, 2)
        self.mlp = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def get_classifier(self) -> nn.Linear:
        return self.head


@pytest.mark.parametrize("target", ["qkv", "q", "in_proj", "out_proj", "att*"])
def test_torchs_own_attention_is_refused(target):
    model = Bare()
    with pytest.raises(UsageError, match=r"attn is torch's nn\.MultiheadAttention, .* \(in_proj_weight\)"):
        add_lora(model, targets=["mlp", target], rank=1, alpha=1.0)
    assert not has_lora(model)
    assert add_lora(model, targets=["mlp"], rank=1, alpha=1.0) == ["mlp"]


@pytest.mark.parametrize(("attribute", "value"), [("head_first", True), ("val_dim", 2), ("use_global", True)])
def test_rows_in_another_order_have_no_thirds(attribute, value):
    attention = nn.Module()
    attention.qkv = nn.Linear(6, 18)
    setattr(attention, attribute, value)
    with pytest.raises(
        UsageError, match="the rows of this network's qkv are not q, then k, then v; target 'qkv' as one"
    ):
        add_lora(Bare(attention), targets=["q"], rank=1, alpha=1.0)
    assert add_lora(Bare(attention), targets=["qkv"], rank=1, alpha=1.0) == ["attn.qkv"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, r"LoRA's alpha must be a positive number, got 0\.0"),
        ({"alpha": float("nan")}, r"LoRA's alpha must be a positive number, got nan"),
        ({"dropout": 1.0}, r"LoRA's dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(UsageError, match=message):
        add_lora(_vit(), **({"targets": ["qkv"], "rank": 1, "alpha": 1.0} | changes))


def test_what_diverged_is_not_merged():
    model = _vit()
    add_lora(model, targets=["qkv", "proj"], rank=1, alpha=1.0)
    model.blocks[1].attn.proj.lora_b.data[0, 0] = torch.inf
    with pytest.raises(ArtefactError, match=r"blocks\.1\.attn\.proj: the merged weight is not finite"):
        merge_lora(model)
    assert len([module for module in model.modules() if isinstance(module, LoraLinear)]) == 4


def test_the_state_that_training_may_have_changed():
    model = _vit()
    add_lora(model, targets=["v"], rank=2, alpha=1.0)
    adapters = {f"blocks.{block}.attn.qkv.lora_{part}" for block in (0, 1) for part in "ab"}
    assert set(adapter_state(model)) == adapters | {"head.weight", "head.bias"}
    model.norm = nn.BatchNorm1d(48)
    buffers = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(adapter_state(model)) == adapters | buffers | {"head.weight", "head.bias"}
    with pytest.raises(ArtefactError, match="no LoRA adapters to merge or to extract"):
        adapter_state(_vit())
