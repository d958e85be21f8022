"""Tests of compress.prune.widths and compress.prune.macs."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.cutting import Part, Structure
from compress.prune.macs import Costs
from compress.prune.widths import _UNEVEN, Ladder, OutOfReachError, block_of, choose, ladder
from tests.zoo.factories import TINY_VIT, make_input
from zoo.networks.registry import build, count_macs


def part(units: int, *, channels: int = 1, kind: str = "channel", multiple: int = 1) -> Part:
    grid = torch.arange(units * channels).view(units, channels).tolist()
    return Part(name="layer", kind=kind, units=tuple(tuple(row) for row in grid), multiple=multiple)


@pytest.mark.parametrize(
    ("made", "block"),
    [
        (part(64), 8),
        (part(64, kind="hidden unit"), 8),
        (part(16, channels=32), 1),  # one unit is 32 channels wide already
        (part(16, channels=4), 2),
        (part(3, channels=64, kind="head"), 1),
        (part(64, channels=3, kind="head dimension"), 8),
        (part(12, channels=3, kind="head dimension"), 4),
        (part(24, multiple=3), 24),
    ],
)
def test_blocks(made: Part, block: int) -> None:
    assert block_of(made, 8) == block


def test_widths_are_rounded_up_and_never_nothing() -> None:
    rungs = ladder(part(20), torch.arange(20.0), round_to=8)
    assert [rungs.rounded(units) for units in (0, 1, 8, 8.1, 16, 17, 20, 99)] == [8, 8, 8, 16, 16, 20, 20, 20]
    narrow = ladder(part(6), torch.arange(6.0), round_to=8)
    assert narrow.rounded(0) == 6  # narrower than a block: it stays
    assert ladder(part(20), torch.arange(20.0), round_to=8, share=0.5).least == 16
    assert ladder(part(20), torch.arange(20.0), round_to=8, share=0.5, whole=40).least == 20


def test_the_least_important_go() -> None:
    rungs = ladder(part(6), torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0, 4.0]), round_to=1)
    assert rungs.doomed(3) == [1, 2, 3]
    assert rungs.doomed(6) == []
    assert ladder(part(3), torch.zeros(3), round_to=1).doomed(1) == [0, 1]  # ties: the first ones


FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "cnn5": (32, {"filters": 8, "dense": 16, "img_size": 32}),
    "lenet": (28, {}),
    "resnet10t": (32, {}),
    "resnext26ts": (32, {}),
    "seresnet18": (32, {}),
    "mobilenetv2_050": (32, {}),
    "googlenet": (64, {}),
    "convnext_atto": (32, {}),
    "vit_tiny_patch16_224": (32, TINY_VIT),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_costs_are_what_counting_the_pruned_network_finds(name: str) -> None:
    size, arguments = FAMILIES[name]
    torch.manual_seed(0)
    model, spec = build(name, classes=3, channels=3, arguments=arguments).eval(), make_input(size)
    structure = Structure(model, spec, embedding=True)
    costs = Costs(structure, spec, structure.parts)
    assert costs.whole == {"macs": count_macs(model, spec), "params": sum(p.numel() for p in model.parameters())}
    cut = structure.copy()
    left = []
    for index, found in enumerate(structure.parts):
        count = len(found.units)
        kept = max(found.multiple, count * (index % 3 + 1) // 4 // found.multiple * found.multiple)
        left.append(kept)
        cut.remove(found, range(count - kept))
    cut.finish()
    assert costs.of("macs", [left])[0] == pytest.approx(count_macs(cut.model, spec), rel=1e-9)
    assert costs.of("params", [left])[0] == pytest.approx(sum(p.numel() for p in cut.model.parameters()), rel=1e-9)


class Linear:
    """Costs of layers that only add up: `price` per unit of each part."""

    def __init__(self, prices: list[float], totals: list[int]) -> None:
        self.prices = np.array(prices)
        self.whole = {"macs": float((self.prices * totals).sum())}

    def of(self, goal: str, left: Any) -> Any:
        return np.asarray(left, dtype=float) @ self.prices


def ladders(*values: list[float], block: int = 2) -> list[Ladder]:
    return [ladder(part(len(one)), torch.tensor(one), round_to=block) for one in values]


def test_the_same_share_of_every_part_goes() -> None:
    found = ladders([1.0] * 8, [9.0] * 16)
    costs = cast(Costs, Linear([1, 1], [8, 16]))
    assert choose(found, costs, "macs", 12, scope="layer") == [4, 8]


def test_the_least_important_of_all_parts_go() -> None:
    found = ladders([0.1] * 8, [1.0] * 4 + [2.0] * 12)
    costs = cast(Costs, Linear([1, 1], [8, 16]))
    assert choose(found, costs, "macs", 18, scope="global") == [2, 16]
    assert choose(found, costs, "macs", 14, scope="global") == [2, 12]


def test_what_is_left_of_the_goal_is_spent_on_the_most_important_blocks() -> None:
    # Equal widths take their steps together: 4 + 4 costs 8, 6 + 6 costs 12; a block of the second is worth more.
    found = ladders([1.0] * 8, [2.0] * 8)
    costs = cast(Costs, Linear([1, 1], [8, 8]))
    assert choose(found, costs, "macs", 11, scope="layer") == [4, 6]


def test_cheap_parts_do_not_come_back_whole() -> None:
    found = ladders([1.0] * 16, [2.0] * 64)
    costs = cast(Costs, Linear([1, 1e-6], [16, 64]))
    expensive, cheap = choose(found, costs, "macs", 8.5, scope="layer")
    assert expensive == 8
    assert 32 <= cheap <= 40


def test_goals_below_the_narrowest_are_refused_with_what_is_left() -> None:
    found = ladders([1.0] * 8, [2.0] * 8)
    with pytest.raises(OutOfReachError) as caught:
        choose(found, cast(Costs, Linear([1, 1], [8, 8])), "macs", 3, scope="layer")
    assert caught.value.share == 4 / 16


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    share=st.floats(0.05, 0.99),
    scope=st.sampled_from(["layer", "global"]),
    seed=st.integers(0, 99),
)
def test_widths_keep_the_goal_and_leave_no_room_for_another_block(
    sizes: list[int], share: float, scope: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    found = [ladder(part(size), torch.tensor(draw.random(size)), round_to=4) for size in sizes]
    costs = Linear((draw.random(len(sizes)) + 0.1).tolist(), sizes)
    most = share * costs.whole["macs"]
    narrowest = [rungs.rounded(0) for rungs in found]
    if costs.of("macs", [narrowest])[0] > most:
        with pytest.raises(OutOfReachError):
            choose(found, cast(Costs, costs), "macs", most, scope=scope)
        return
    left = choose(found, cast(Costs, costs), "macs", most, scope=scope)
    assert costs.of("macs", [left])[0] <= most
    steps = {min(1.0, 4 * block / size) for size in sizes for block in range(size // 4 + 2)}
    even = {step: [rungs.rounded(step * size) for rungs, size in zip(found, sizes, strict=True)] for step in steps}
    common = max(step for step, widths in even.items() if costs.of("macs", [widths])[0] <= most)
    for (index, rungs), size in zip(enumerate(found), sizes, strict=True):
        assert left[index] == size or left[index] % 4 == 0
        wider = list(left)
        wider[index] = rungs.rounded(left[index] + 1)
        # With the scope `layer`, no part keeps much more than the share that all can keep.
        bounded = scope == "layer" and wider[index] > rungs.rounded((1 + _UNEVEN) * common * size)
        assert wider == left or bounded or costs.of("macs", [wider])[0] > most


def test_structure_is_not_changed_by_counting() -> None:
    model, spec = build("lenet", classes=3, channels=1).eval(), make_input(28, "L")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    structure = Structure(model, spec)
    Costs(structure, spec, structure.parts)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_terms_of_parts_that_share_channels_multiply() -> None:
    """Half of the heads and half of each head's dimensions: a quarter of the projection's input."""
    model, spec = (
        build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT | {"num_heads": 4}),
        make_input(32),
    )
    structure = Structure(model.eval(), spec)
    parts = [found for found in structure.parts if found.kind.startswith("head") and "blocks.0" in found.name]
    costs = Costs(structure, spec, parts)
    both, heads, dims, none = costs.of("params", [[2, 6], [2, 12], [4, 6], [4, 12]])
    attention = 48 * 4 * 48 + 3 * 48  # weights of qkv and proj, and the bias of qkv
    assert none - both == attention * 3 / 4
    assert none - heads == none - dims == attention / 2
