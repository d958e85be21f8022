"""Give layers fewer channels, and a freshly built network the shapes of a pruned one.

A pruned artefact is rebuilt from what its file states (architecture, tensor shapes, heads), never from a pickle.
Whatever a layer keeps beside its tensors (widths, groups, heads) is read off the tensors, by the same functions when a
network is pruned and when it comes back from its file. Of blocks that are gone whole, the file has the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from zoo.base.errors import ArtefactError

__all__ = [
    "Shortcut",
    "attentions",
    "drop_blocks",
    "dropped_blocks",
    "is_depthwise",
    "keep_channels",
    "keep_slices",
    "qkv_width",
    "set_heads",
    "shrink",
    "update",
]


class Shortcut(nn.Identity):
    """What is left of a residual block without its branch: the features come out as they go in, in any shape.

    Unlike nn.Identity it may be told what the branch would read besides (rotary positions, masks).
    """

    def forward(self, input: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """`input` itself."""
        return input


def drop_blocks(model: nn.Module, names: Iterable[str]) -> None:
    """Leave nothing but the shortcut of residual blocks, in place.

    Args:
        model: the network.
        names: of the blocks in it.

    Raises:
        ArtefactError: the network has no such block.
    """
    for name in names:
        try:
            model.set_submodule(name, Shortcut(), strict=True)
        except (AttributeError, ValueError) as error:
            raise ArtefactError(f"the block {name!r}, which was dropped, is not in {type(model).__name__}") from error


def dropped_blocks(model: nn.Module) -> tuple[str, ...]:
    """The names of the blocks of which only the shortcut is left."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, Shortcut))


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """timm's attention modules with a fused `qkv` layer: name -> module."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads")
    }


def qkv_width(attention: nn.Module) -> int:
    """Number of output features of an attention module's fused `qkv` layer."""
    layer = attention.qkv
    assert isinstance(layer, nn.Linear)
    return layer.out_features


def set_heads(attention: nn.Module, heads: int) -> None:
    """Tell an attention module that its `qkv` layer now has `heads` heads; they share its width evenly.

    The scale of the products of queries and keys is one over the root of a head's width, as PyTorch's fused attention
    has it; who removes dimensions of heads makes up for that in the weights.

    Raises:
        ArtefactError: the width of `qkv` is not a multiple of 3 x heads.
    """
    width = qkv_width(attention)
    if heads < 1 or width % (3 * heads):
        raise ArtefactError(f"an attention layer with {width} qkv features cannot have {heads} heads")
    head_dim = width // (3 * heads)
    for name, value in {
        "num_heads": heads,
        "head_dim": head_dim,
        "attn_dim": heads * head_dim,
        "scale": head_dim**-0.5,
    }.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def shrink(model: nn.Module, shapes: Mapping[str, Sequence[int]], heads: Mapping[str, int]) -> None:
    """Replace every parameter and buffer of `model` whose shape differs by an empty one of the shape in `shapes`.

    Args:
        model: the network as its architecture builds it; changed in place.
        shapes: state-dict name -> shape.
        heads: attention module name -> number of heads, for those that have fewer than the architecture.

    Raises:
        ArtefactError: `heads` names a module that is not an attention layer, or a width of `qkv` cannot be shared by
            its heads. Missing or surplus tensors are left for the strict load to report.
    """
    found = attentions(model)
    before = {name: qkv_width(module) for name, module in found.items()}
    changed = set()
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                shape = shapes.get(f"{prefix}.{key}" if prefix else key)
                if tensor is None or shape is None or tuple(shape) == tuple(tensor.shape):
                    continue
                empty = torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)
                store[key] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
                changed.add(module)
    update(model, changed)
    for name in heads:
        if name not in found:
            raise ArtefactError(f"the card names {name!r} as an attention layer, the network has {sorted(found)[:5]}")
    for name, module in found.items():
        if name in heads or qkv_width(module) != before[name]:
            set_heads(module, heads.get(name, int(module.num_heads)))  # type: ignore[arg-type]


def keep_channels(layer: nn.Module, side: str, kept: torch.Tensor) -> None:
    """Keep only some channels of a layer, in place.

    Args:
        layer: a convolution, linear layer or normalisation.
        side: `out`, or `in` for what a convolution or linear layer reads; a depthwise convolution and a normalisation
            have one side, `out`.
        kept: indices of the channels, int64 [n], ascending. Of a grouped convolution the same offsets in every group.
    """
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        axis = int((side == "in") != transposed)
        groups = getattr(layer, "groups", 1)
        if side == "in" and groups > 1:
            kept = kept[kept < layer.weight.shape[1]]
        keep_slices(layer, "weight", axis, kept)
        if side == "out":
            keep_slices(layer, "bias", 0, kept)
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            keep_slices(layer, name, -1, kept)
    _update_widths(layer)


def keep_slices(owner: nn.Module, name: str, axis: int, kept: torch.Tensor) -> None:
    """Keep only some slices of a module's parameter or buffer along an axis; one that is None or absent stays so."""
    tensor = getattr(owner, name, None)
    if not isinstance(tensor, torch.Tensor):
        return
    smaller = tensor.detach().index_select(axis, kept.to(tensor.device))
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(owner, name, nn.Parameter(smaller, requires_grad=tensor.requires_grad) if is_parameter else smaller)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution with one filter per channel, whose two sides are one."""
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def update(model: nn.Module, changed: Iterable[nn.Module]) -> None:
    """Make the widths that `changed` layers, and the network itself, keep beside their tensors agree with those."""
    layers = list(changed)
    for layer in layers:
        _update_widths(layer)
    if layers:
        _update_network(model)


def _update_widths(layer: nn.Module) -> None:
    if isinstance(layer, nn.modules.conv._ConvNd):
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        first, second = layer.weight.shape[:2]
        if is_depthwise(layer) or (second == 1 and first < layer.groups):
            # A grouped convolution that was narrowed to one channel per group is depthwise from then on.
            layer.groups = first
        one, other = first, second * layer.groups
        layer.out_channels, layer.in_channels = (other, one) if transposed else (one, other)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        tensors = [tensor for tensor in (layer.weight, layer.running_mean) if tensor is not None]
        layer.num_features = len(tensors[0]) if tensors else layer.num_features
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        layer.num_channels = len(layer.weight)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif hasattr(layer, "normalized_shape") and isinstance(layer.weight, torch.Tensor):
        # LayerNorm, RMSNorm and timm's relatives of both.
        layer.normalized_shape = tuple(layer.weight.shape)  # type: ignore[assignment]


def _update_network(model: nn.Module) -> None:
    """The numbers of features that timm's networks keep, which its functions for new classifiers read."""
    find = getattr(model, "get_classifier", None)
    heads = find() if find else None
    head = heads[0] if isinstance(heads, tuple | list) else heads
    layers = [part for part in head.modules() if isinstance(part, nn.Linear)] if isinstance(head, nn.Module) else []
    if not layers:
        return
    width = layers[-1].in_features
    before = getattr(model, "head_hidden_size", None)
    for name in ("head_hidden_size", "num_features", "embed_dim"):
        if before is not None and getattr(model, name, None) == before:
            setattr(model, name, width)
