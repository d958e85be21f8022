"""Give a freshly built network the shapes of a pruned one, so that its tensors load strictly.

A pruned artefact is rebuilt from what its file states (architecture, tensor shapes, heads), never from a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from zoo.errors import ArtefactError

__all__ = ["attentions", "qkv_width", "set_heads", "shrink"]


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
    """Tell an attention module that its `qkv` layer now has `heads` heads; the width of a head does not change.

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
        heads: attention module name -> number of heads.

    Raises:
        ArtefactError: `heads` names a module that is not an attention layer. Missing or surplus tensors are left
            for the strict load to report.
    """
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                shape = shapes.get(f"{prefix}.{key}" if prefix else key)
                if tensor is None or shape is None or tuple(shape) == tuple(tensor.shape):
                    continue
                empty = torch.empty(tuple(shape), dtype=tensor.dtype, device=tensor.device)
                store[key] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        _update_widths(module)
    found = attentions(model)
    for name, count in heads.items():
        if name not in found:
            raise ArtefactError(f"the card names {name!r} as an attention layer, the network has {sorted(found)[:5]}")
        set_heads(found[name], count)


def _update_widths(module: nn.Module) -> None:
    """Make the attributes that PyTorch's layers keep beside their tensors agree with the tensors."""
    if isinstance(module, nn.Conv2d):
        out_channels, per_group = module.weight.shape[:2]
        depthwise = module.groups > 1 and module.groups == module.in_channels
        module.groups = out_channels if depthwise else module.groups
        module.out_channels, module.in_channels = out_channels, per_group * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = module.running_mean.shape[0]
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
