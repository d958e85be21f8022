"""Grad-CAM: which places of an image speak for a label (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2).

Of a layer with feature maps A_k and a label's logit y, a_k is the mean of dy/dA_k over the places, and the map is
ReLU(sum_k a_k A_k); Captum's LayerGradCam computes it. Tokens of a transformer are laid out as maps first, without
those that stand for no place, so that the mean is over patches only.

Which layer: the last one whose places the answer depends on. After the last convolution of a CNN that is the input of
the pooling. In a ViT that pools patches it is the last block's output, or the norm after it. In a ViT that reads its
class token, the patches of the last block's output reach nothing any more and have no gradient; what still reaches
the class token is what its last attention reads: the output of that block's first norm. Layers that leave fewer than
4 x 4 places are passed over for one that leaves more, where there is one: on small images the last ones leave none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LayerGradCam
from torch import nn

from zoo.base.errors import UsageError
from zoo.explain.panels import NEUTRAL, Panel, draw_panels
from zoo.explain.predictions.answers import percent
from zoo.explain.signed_colours import in_rows
from zoo.explain.structure.spatial_layout import check_output, find_layer, places_of
from zoo.networks.cutting.tracing import without_gradients_of_weights

__all__ = ["Heat", "default_layer", "draw_heats", "explain_labels", "gradcam"]

_COARSE = 4
"""Maps of fewer rows or columns say little; one of them is taken only in a network that has no others."""


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Where a network sees a label in an image."""

    title: str
    """Of the image."""
    image: npt.NDArray[np.uint8]
    """uint8 [H, W, 3], as the network sees it."""
    label: str
    """The one that is explained."""
    probability: float
    """Of that label, after the card's temperature."""
    answer: str
    """The most probable label."""
    heat: npt.NDArray[np.float32]
    """float32 [h, w]; 0 where nothing speaks for the label."""


def gradcam(model: nn.Module, inputs: torch.Tensor, labels: Sequence[int], layer: str) -> npt.NDArray[np.float32]:
    """Grad-CAM of one label per image: float32 [B, h, w], at least 0, not scaled.

    Args:
        model: in evaluation mode, from images to logits [B, K]; stays as it is.
        inputs: float32 [B, C, H, W].
        labels: B indices of logits.
        layer: whose output is explained; maps or tokens.

    Raises:
        UsageError: there is no such layer, it is not called, its output has no places, or the answer does not depend
            on it.
    """
    maps = nn.Identity()  # stands for the layer, in the layout that Captum expects
    outputs: list[object] = []

    def through_maps(module: nn.Module, given: object, output: object) -> torch.Tensor:
        outputs.append(output)
        tensor = check_output(model, layer, outputs)
        places = places_of(model, layer, tensor, inputs)
        return places.back(maps(places.maps(tensor)), tensor)

    handle = find_layer(model, layer).register_forward_hook(through_maps)
    try:
        with without_gradients_of_weights(model):
            found = LayerGradCam(model, maps).attribute(
                inputs.detach().clone().requires_grad_(), target=list(labels), relu_attributions=True
            )
    except (AssertionError, RuntimeError) as error:
        check_output(model, layer, outputs)  # Captum looks in vain for a layer that is not called
        if "not have been used in the graph" not in str(error):
            raise
        raise UsageError(f"the answer does not depend on layer {layer!r}; take another one") from error
    finally:
        handle.remove()
    return np.asarray(found[:, 0].detach().float().cpu().numpy(), dtype=np.float32)


def default_layer(model: nn.Module, inputs: torch.Tensor) -> str:
    """The last layer with several places that the answer depends on; one of at least 4 x 4 places where there is one.

    Args:
        model: in evaluation mode; stays as it is.
        inputs: an image, float32 [1, C, H, W].

    Raises:
        UsageError: there is none.
    """
    outputs = _outputs(model, inputs)
    coarse = ""
    for name, gradient in reversed(outputs):
        try:
            places = places_of(model, name, gradient, inputs)
        except UsageError:
            continue
        rows, columns = places.grid
        if rows * columns == 1 or not places.maps(gradient).any():
            continue
        if min(rows, columns) >= _COARSE:
            return name
        coarse = coarse or name
    if not coarse:
        raise UsageError(
            f"{type(model).__name__} has no layer with several places that its answer depends on; name one with --layer"
        )
    return coarse


def _outputs(model: nn.Module, inputs: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The layers outside attention in the order in which they end, and the best logit's gradients of their outputs."""
    # Within attention maps are queries and keys, or products of both; none is an image's.
    inner = {
        part
        for module in model.modules()
        if hasattr(module, "num_heads")
        for part in module.modules()
        if part is not module and not hasattr(part, "num_heads")
    }
    seen: list[tuple[str, torch.Tensor]] = []

    def note(name: str, output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor) or output.ndim < 3 or not output.requires_grad:
            return None
        seen.append((name, output))
        return output.clone()  # what comes next may work in place

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name and module not in inner
    ]
    try:
        with without_gradients_of_weights(model), torch.enable_grad():
            best = model(inputs.detach().clone().requires_grad_()).max()
        gradients = torch.autograd.grad(best, [output for _, output in seen], allow_unused=True) if seen else ()
    finally:
        for handle in handles:
            handle.remove()
    return [(name, got) for (name, _), got in zip(seen, gradients, strict=True) if got is not None]


def explain_labels(
    model: nn.Module,
    pictures: Sequence[tuple[str, torch.Tensor, npt.NDArray[np.uint8]]],
    labels: Sequence[str],
    *,
    layer: str,
    label: int | None = None,
    temperature: float = 1.0,
) -> list[Heat]:
    """Grad-CAM for images one by one.

    Args:
        model: in evaluation mode; stays as it is.
        pictures: of each its title, the input [1, C, H, W], and the image uint8 [H, W, 3].
        labels: the names of the logits.
        layer: see :func:`gradcam`.
        label: which logit is explained; None: the largest.
        temperature: logits are divided by it to become probabilities.

    Raises:
        UsageError: see :func:`gradcam`.
    """
    found = []
    for title, inputs, image in pictures:
        with torch.inference_mode():
            logits = model(inputs)[0]
        probabilities = torch.softmax(logits.double() / temperature, dim=0)
        best = int(logits.argmax())
        asked = best if label is None else label
        found.append(
            Heat(
                title=title,
                image=image,
                label=labels[asked],
                probability=float(probabilities[asked]),
                answer=labels[best],
                heat=gradcam(model, inputs, [asked], layer)[0],
            )
        )
    return found


def draw_heats(path: Path, heats: Sequence[Heat], *, name: str, layer: str) -> None:
    """Draw images, each with its heat map beside it, as PNG.

    Args:
        path: of the PNG file.
        heats: what to draw; each map from its least to its greatest value.
        name: of the network.
        layer: that was explained.

    Raises:
        ArtefactError: the file cannot be written.
    """
    panels: list[Panel | None] = []
    for one in heats:
        text = f"{one.label}\n{percent(one.probability)}" + ("" if one.heat.any() else ", no evidence for it")
        panels.append(Panel(image=one.image, title=f"{one.title}\npredicted: {one.answer}", colour=NEUTRAL))
        panels.append(Panel(image=one.image, title=text, overlay=one.heat))
    rows, columns = heats[0].heat.shape
    heading = (
        f"Grad-CAM of {name}, layer {layer} ({rows} x {columns} spatial positions). Left the input, right the "
        "evidence for the label, from dark (none) to yellow (the map's maximum)"
    )
    draw_panels(path, in_rows(panels, 2 if len(heats) == 1 else 4 if len(heats) <= 4 else 6), heading=heading)
