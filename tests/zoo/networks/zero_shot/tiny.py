"""Tiny CLIPs with random weights, which open_clip builds from configurations that are made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

LABELS = ("tabby cat", "dog", "laying hen")
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
"""The vocabulary is that of open_clip's own tokenizer."""
VIT = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 48, "head_width": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-vit": {"vision_cfg": VIT},
    "tiny-vit-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
    "tiny-convnext": {
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    },
    # A trunk whose own classifier is the projection, as MobileCLIP and EVA-02 have it.
    "tiny-token": {
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None, "image_size": 160},
    },
    # No projection and an offset of the logits, as SigLIP has it.
    "tiny-bias": {
        "custom_text": True,
        "embed_dim": 64,
        "init_logit_bias": -3.0,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none", "image_size": 160},
    },
}


def register(folder: Path) -> None:
    """Make the configurations known to open_clip."""
    for name, config in CONFIGS.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"embed_dim": 24, "text_cfg": TEXT} | config))
        open_clip.add_model_config(path)


def make_clip(name: str, path: Path, *, seed: int = 0) -> nn.Module:
    """A model with random weights of every kind, saved as open_clip's training saves it."""
    torch.manual_seed(seed)
    config = open_clip.get_model_config(name)
    made = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = made(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms, which start as zeros and ones
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.logit_scale.fill_(3.0)
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return model


@torch.inference_mode()
def open_clips_scores(
    model: nn.Module, images: torch.Tensor, labels: tuple[str, ...], templates: tuple[str, ...]
) -> torch.Tensor:
    """Zero-shot logits [B, K] as open_clip's own functions compute them, one label after the other."""
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    weights = open_clip.build_zero_shot_classifier_legacy(model, tokenizer, labels, templates)  # [E, K]
    scores = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ weights
    return scores if model.logit_bias is None else scores + model.logit_bias
