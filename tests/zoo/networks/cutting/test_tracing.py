"""What a graph has steps for, and which of them training changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.base.errors import UsageError
from zoo.networks.cutting.tracing import Shape, TooDeepError, Traced, has_tensors, moving, restored, trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.body(self.stem(x))
        if mask is not None:
            x = x * mask
        count = x.shape[0]
        x = self.tail(x).view(count, -1)
        return self.head(nn.functional.dropout(x, 0.5, training=self.training))


IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def follow(model: nn.Module, trainable: list[str], live: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Traced:
    with torch.no_grad():
        return trace(model, moving(model, trainable, live), whole, IMAGES)


def steps(traced: Traced) -> dict[str, bool]:
    """Name of every module called -> whether training changes what it gives."""
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    return {str(node.target).removeprefix("model."): node in traced.moving for node in nodes}


def test_only_modules_that_are_partly_frozen_are_entered() -> None:
    found = steps(follow(Net(), ["body.1.weight"]))
    assert found == {"stem": False, "body.0": False, "body.1": True, "tail": True, "head": True}
    assert steps(follow(Net(), ["head.bias"])) == {"stem": False, "body": False, "tail": False, "head": True}
    found = steps(follow(Net(), ["head.bias"], live=("stem.1",)))
    assert found == {"stem.0": False, "stem.1": True, "body": True, "tail": True, "head": True}
    found = steps(follow(Net(), ["body.1.weight"], whole=("model.body",)))
    assert found == {"stem": False, "body": True, "tail": True, "head": True}


def test_nodes_know_what_they_depend_on() -> None:
    traced = follow(Net(), ["head.bias"])
    nodes = {node.name: node for node in traced.graph.nodes}
    assert traced.seen[nodes["model_stem"]] == (Shape((3, 4, 6, 6)), Shape((2, 4, 6, 6)))
    assert traced.seen[nodes["getitem"]] == (3, 2)
    assert nodes["model_stem"] in traced.data
    assert nodes["getitem"] not in traced.data
    assert not has_tensors(traced.seen[nodes["getattr_1"]][0])
    assert [node.name for node in traced.alternatives] == ["dropout"]
    assert traced.alternatives[nodes["dropout"]].kwargs["training"] is True
    assert nodes["dropout"].kwargs["training"] is False
    assert traced.owners[nodes["dropout"]] == "model"


class Asking(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_what_cannot_be_followed_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Asking(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    with pytest.raises(TooDeepError, match="TraceError: symbolically traced variables") as caught:
        follow(model, ["1.1.weight"])
    assert caught.value.path == "model.1"
    assert steps(follow(model, ["1.1.weight"], whole=("model.1",))) == {"0": False, "1": True}


def test_everything_is_put_back() -> None:
    model = Net()
    model.stem.eval()
    model.head.bias.requires_grad_(False)
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(KeyError), restored(model):
        model.eval()
        model.extra = 1
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [vars(module) for module in model.modules()] == before
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["head.bias"]


def test_names_are_checked() -> None:
    with pytest.raises(UsageError, match="nothing is trainable"):
        moving(Net(), [], ())
    with pytest.raises(UsageError, match=r"unknown parameter 'head.bais'; did you mean head.bias"):
        moving(Net(), ["head.bais"], ())
