"""What an architecture is made of: its cost, its smallest input, and the names that other settings refer to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.base.errors import unknown_name
from zoo.base.settings import parse_setting
from zoo.base.size import Size
from zoo.networks.cutting.truncate import layer_names
from zoo.networks.registry import build, classifier, classifier_names, count_macs, input_for, last_layers
from zoo.networks.sizes import check_size, smallest_input
from zoo.networks.stages import stages

__all__ = ["as_argument", "describe", "lora_targets"]


def describe(
    architecture: str, settings: Sequence[str] = (), *, size: Size | None = None, classes: int, colour: str
) -> dict[str, Any]:
    """Facts about an architecture, as JSON.

    Args:
        architecture: a registered name.
        settings: its arguments as `key=value`, the values as TOML; `arguments.key=value` as in recipes is the same.
        size: of the input; None: what it is made for.
        classes: number of labels.
        colour: "RGB" or "L".

    Returns:
        name, arguments, size (height and width), channels, smallest (edge in pixels), parameters, macs (of one
        image), classifier (its modules' names), features (inputs of its last layer), stages, lora_targets (last
        part of linear layers' names -> how many), layers.

    Raises:
        UsageError: unknown name or arguments, or a size that it does not take.
    """
    if colour not in ("RGB", "L"):
        raise unknown_name("colour", colour, ("RGB", "L"))
    arguments = dict(as_argument(text) for text in settings)
    spec = input_for(architecture, colour=colour, size=size, photographs=True, arguments=arguments)
    model = build(architecture, classes=classes, channels=spec.channels, arguments=arguments)
    check_size(model, architecture, spec)
    last = last_layers(model)[-1]
    return {
        "name": architecture,
        "arguments": arguments,
        "size": list(spec.size),
        "channels": spec.channels,
        "smallest": smallest_input(architecture, arguments, spec.channels),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, spec),
        "classifier": classifier_names(model),
        "features": last.in_features if isinstance(last, nn.Linear) else last.in_channels,
        "stages": [stage.name for stage in stages(model)],
        "lora_targets": lora_targets(model),
        "layers": layer_names(model),
    }


def lora_targets(model: nn.Module) -> dict[str, int]:
    """Last parts of the names of linear layers outside of the classifier, and how many layers each names."""
    head = set(classifier(model).modules())
    return dict(
        Counter(
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module not in head
        )
    )


def as_argument(text: str) -> tuple[str, Any]:
    """An argument of an architecture, "key=value" with the value as TOML (or a bare word), as its key and value.

    Raises:
        UsageError: it is no setting.
    """
    key, value = parse_setting(text)
    return key.removeprefix("arguments."), value
