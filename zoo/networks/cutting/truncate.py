"""A network up to one of its layers: features for linear probes, and shorter networks.

Letters in shapes: B images, C channels, H and W pixels, N tokens, D features of a token, F features of an image,
K labels.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from timm.layers import get_notrace_functions
from timm.models import group_parameters
from torch import fx, nn

from zoo.base.errors import UsageError, unknown_name
from zoo.networks.cutting.tracing import restored
from zoo.networks.registry import classifier_names, input_channels
from zoo.networks.sizes import REFUSALS, declared_size, run_on_shapes

__all__ = ["Features", "Truncated", "channels_last", "features_of", "layer_names", "truncate"]


class Features(nn.Module):
    """A network's answer, pooled to one vector per image: [B, channels, H, W] to [B, F].

    Maps [B, C, H, W] or [B, H, W, C] are averaged over their pixels. Of tokens [B, N, D] the class token is taken
    where there is one, else the mean of all that stand for a part of the image.
    """

    def __init__(self, network: nn.Module, *, pool: str, prefix: int = 0) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self.prefix = prefix
        """Number of tokens before those of the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] to [B, F]."""
        output: torch.Tensor = self.network(images)
        if self.pool == "maps":
            return output.mean(dim=(2, 3))  # [B, C, H, W] -> [B, C]
        if self.pool == "maps, channels last":
            return output.mean(dim=(1, 2))  # [B, H, W, C] -> [B, C]
        if self.pool == "class token":
            return output[:, 0]  # [B, N, D] -> [B, D]
        if self.pool == "tokens":
            return output[:, self.prefix :].mean(dim=1)  # [B, N, D] -> [B, D]
        return output  # [B, F]


class Truncated(nn.Module):
    """Features of a layer and a linear classifier on them: float32 [B, channels, H, W] to logits [B, K]."""

    def __init__(
        self,
        features: Features,
        width: int,
        classes: int,
        *,
        img_size: tuple[int, int] = (224, 224),
        image_channels: int = 3,
        groups: Mapping[str, int] | None = None,
        no_weight_decay: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.image_channels = image_channels
        self._groups = dict(groups or {})
        self._no_weight_decay = {f"features.network.{name}" for name in no_weight_decay}
        self.features = features
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """The linear layer on the features."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier with random weights for `num_classes` labels."""
        self.head = nn.Linear(self.head.in_features, num_classes)

    def group_matcher(self, coarse: bool = True) -> Callable[[str], float]:
        """Sorts parameters into the whole network's stages: a function from a parameter's name to its place."""
        return lambda name: self._groups.get(name.removeprefix("features.network."), math.inf)

    def no_weight_decay(self) -> set[str]:
        """The parameters that the whole network spares from weight decay."""
        return self._no_weight_decay

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of images [B, channels, H, W]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def truncate(model: nn.Module, layer: str, classes: int) -> Truncated:
    """The network up to and with a layer, its output pooled, and a linear classifier that is zero.

    Args:
        model: built by zoo.networks.registry, with its weights; the result shares its layers, it has no others.
        layer: a name in :func:`layer_names`.
        classes: number of labels.

    Raises:
        UsageError: an unknown layer (with close matches), one whose output is no image, tokens or vector of an
            image, or a network whose way to the layer cannot be followed.
    """
    features, width = _features(model, layer, _cut(model, _known(model, layer)))
    return Truncated(
        features,
        width,
        classes,
        img_size=declared_size(model),
        image_channels=input_channels(model),
        groups=_groups(model),
        no_weight_decay=getattr(model, "no_weight_decay", set)(),
    )


def features_of(model: nn.Module, layer: str = "") -> nn.Module:
    """The features of a layer: a module from float32 [B, channels, H, W] to [B, F], without the classifier.

    Args:
        model: built by zoo.networks.registry, or loaded; stays as it is.
        layer: a name in :func:`layer_names`, whose modules are shared with `model`; "": what the classifier is
            given, of a copy of `model`.

    Raises:
        UsageError: see :func:`truncate`.
    """
    if layer:
        return _features(model, layer, _Until(model, _known(model, layer)))[0]
    # A classifier that does nothing hands out what it is given, whatever the network's forward does around it.
    whole = copy.deepcopy(model)
    for name in classifier_names(whole):
        whole.set_submodule(name, nn.Identity())
    pool, prefix = _pooling(model, "before the classifier", _answer(whole, "before the classifier"))
    return Features(whole, pool=pool, prefix=prefix)


def layer_names(model: nn.Module) -> list[str]:
    """The layers that have an output of their own, in the network's order, without the classifier."""
    heads = classifier_names(model)
    return [
        name
        for name, module in model.named_modules()
        if name
        and type(module) not in (nn.ModuleList, nn.ModuleDict)
        and not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]


def _groups(model: nn.Module) -> dict[str, int]:
    """Parameter name -> number of its stage, as timm has it, else by the first two parts of the name."""
    matcher = getattr(model, "group_matcher", None)
    if matcher is not None:
        with contextlib.suppress(AssertionError):  # RDNet has a matcher, but no coarse one
            return dict(group_parameters(model, matcher(coarse=True), reverse=True))
    places: dict[str, int] = {}
    return {name: places.setdefault(".".join(name.split(".")[:2]), len(places)) for name, _ in model.named_parameters()}


class _Tracer(fx.Tracer):
    """Follows the forward functions of a layer's parents only; every other module stays whole.

    So modules keep their types and attributes (an attention's heads), and what they do inside need not be traceable.
    (torchvision's create_feature_extractor tells whole modules by their types, and a layer's parent may be of the same
    type as what is to stay whole.)
    """

    def __init__(self, layer: str) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.layer.startswith(f"{module_qualified_name}.")


class _Reached(Exception):  # noqa: N818 (no error: it ends a forward pass)
    """Carries a layer's output out of the network."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output


class _Until(nn.Module):
    """Runs a network as far as a layer's first output, whatever its forward function is like.

    Unlike a cut network it has the layers behind, and an exporter may not follow it.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self.layer = layer

    def forward(self, images: torch.Tensor) -> Any:
        """What the layer returns."""

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            raise _Reached(output)

        handle = self.network.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.network(images)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise _never_called(self.network, self.layer)


def _known(model: nn.Module, layer: str) -> str:
    known = layer_names(model)
    if layer not in known:
        raise unknown_name("layer", layer, known)
    return layer


def _never_called(model: nn.Module, layer: str) -> UsageError:
    return UsageError(f"{type(model).__name__} does not call its layer {layer!r}; take another one")


def _features(model: nn.Module, layer: str, network: nn.Module) -> tuple[Features, int]:
    """The pooled output of `network`, which ends at a layer of `model`, and how many features that is."""
    output = _answer(network, layer, declared_size(model), input_channels(model))
    pool, prefix = _pooling(model, layer, output)
    width = output.shape[1 if pool == "maps" else -1]
    return Features(network, pool=pool, prefix=prefix), int(width)


def _cut(model: nn.Module, layer: str) -> fx.GraphModule:
    """The network's forward function up to a layer, with the layers that it needs."""
    with restored(model):  # fx keeps the constants that it meets as attributes
        modes = [_traced(model.train(mode), layer) for mode in (True, False)]
    if modes[0].code != modes[1].code:
        name = type(model).__name__
        raise UsageError(f"{name} goes other ways to {layer!r} when it is trained; take an earlier layer")
    return modes[1].train(model.training)


def _traced(model: nn.Module, layer: str) -> fx.GraphModule:
    name = type(model).__name__
    try:
        # What else a forward function can be given (masks) stays at its default, which decides its branches.
        parameters = list(inspect.signature(model.forward).parameters.values())[1:]
        fixed_arguments = {p.name: p.default for p in parameters if p.default is not p.empty}
        graph = _Tracer(layer).trace(model, concrete_args=fixed_arguments or None)
    except Exception as error:  # whatever a forward function does with the stand-ins of tensors
        raise UsageError(
            f"{name} cannot be cut at {layer!r}: its forward function cannot be followed ({error}); "
            "probe the layer instead, or take the whole network"
        ) from error
    _end_at(graph, layer, model)
    network = fx.GraphModule(model, graph, class_name=name)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    fixed = [
        node
        for node in network.graph.nodes
        if str(node.target).startswith("_tensor_constant") or isinstance(node.kwargs.get("device"), torch.device)
    ]
    if fixed:
        raise UsageError(
            f"{name} cannot be cut at {layer!r}: its forward function makes tensors on this machine's device "
            "(rotary positions do); probe the layer instead, or take the whole network"
        )
    return network


def _end_at(graph: fx.Graph, layer: str, model: nn.Module) -> None:
    """Make the last call of a layer the graph's output, and drop what comes after it."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" and node.target == layer:
            graph.output(node)
            return
        graph.erase_node(node)
    raise _never_called(model, layer)


def _answer(network: nn.Module, layer: str, size: tuple[int, int] | None = None, channels: int | None = None) -> Any:
    try:
        output = run_on_shapes(network, channels or input_channels(network), size or declared_size(network))
    except (*REFUSALS, AttributeError) as error:
        raise UsageError(
            f"{type(network).__name__} gives no features at layer {layer!r}: {error}; take another layer"
        ) from error
    if not isinstance(output, torch.Tensor) or not 2 <= output.ndim <= 4 or output.shape[0] != 2:
        found = f"of the shape {list(output.shape)} for 2 images" if isinstance(output, torch.Tensor) else "no tensor"
        raise UsageError(
            f"the output of layer {layer!r} is {found}, expected maps [B, C, H, W], "
            "tokens [B, N, D] or vectors [B, F]; take a layer that is further out, like a whole block"
        )
    return output


def _pooling(model: nn.Module, layer: str, output: torch.Tensor) -> tuple[str, int]:
    """How to pool a layer's output, and how many tokens to leave out."""
    if output.ndim == 2:
        return "none", 0
    if output.ndim == 4:
        return ("maps, channels last" if channels_last(model, output) else "maps"), 0
    tokens, prefix = output.shape[1], int(getattr(model, "num_prefix_tokens", 0))
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if prefix == 0 or tokens == patches:
        return "tokens", 0
    if patches is None or tokens != patches + prefix:
        raise UsageError(
            f"the output of layer {layer!r} is {tokens} tokens, expected the {patches} of the image's patches"
            f" and {prefix} before them; take a layer that is further out, like a whole block"
        )
    return ("class token", 0) if getattr(model, "cls_token", None) is not None else ("tokens", prefix)


def channels_last(model: nn.Module, output: torch.Tensor) -> bool:
    """Whether maps are [B, H, W, C]: two axes must have the proportions of the image."""
    height, width = declared_size(model)
    first, second, third = output.shape[1:]
    before, after = (abs(a * width - b * height) for a, b in ((second, third), (first, second)))
    # Where channels and pixels are equally many, the network's own word decides.
    return after < before if after != before else getattr(model, "output_fmt", "NCHW") == "NHWC"
