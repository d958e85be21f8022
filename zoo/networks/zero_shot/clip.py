"""CLIP and its relatives: which there are, their weights, and texts to classifiers. The one module of open_clip.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020). Letters
in shapes: K labels, E features that images and texts share.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from zoo.artefact.card import Input, Resize
from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.base.files import write_atomically
from zoo.base.progress import note

__all__ = ["Clip", "Texts", "check_templates", "find_clip", "load_clip", "load_texts", "save_texts"]

_KEY = "zoo.texts"
_SCHEMA = "zoo.texts/1"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_LONGEST_REASON = 300
"""Characters of another library's error: torch lists every tensor."""
_NO_IMAGES = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64}
"""The least image tower that open_clip builds, where only texts are embedded."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One of open_clip's models, without weights."""

    name: str
    """As in open_clip.list_models()."""
    tag: str
    """Of open_clip's weights; "": of a file that nobody has published, or of which this is not said."""
    config: Mapping[str, Any]
    """What open_clip builds it from."""
    input: Input
    """The preprocessing that it was trained with."""

    @property
    def full_name(self) -> str:
        """NAME.TAG, or NAME."""
        return f"{self.name}.{self.tag}" if self.tag else self.name


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What turns texts into features."""

    model: nn.Module
    """open_clip's, whose image tower may be any."""
    config: Mapping[str, Any]

    def classifier(self, labels: Sequence[str], templates: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What a linear layer on features of length one needs to answer with CLIP's logits.

        For each label the embeddings of its texts, brought to length one, are averaged and brought to length one again
        (section 3.1.4 of the paper); the scale of the logits is part of the weight, as WiSE-FT has it (arXiv
        2109.01903).

        Args:
            labels: K.
            templates: texts with `{}` in the label's place.

        Returns:
            Weight float32 [K, E] and bias float32 [K].

        Raises:
            UsageError: a text that is longer than the tower reads.
        """
        text = self.config["text_cfg"]
        length = int(text.get("context_length", 77))
        tokenizer = open_clip.SimpleTokenizer(context_length=length, **(text.get("tokenizer_kwargs") or {}))
        for words in (template.replace("{}", label) for label in labels for template in templates):
            if (count := len(tokenizer.encode(words)) + 2) > length:
                raise UsageError(f"{words!r} is {count} tokens, the text tower reads {length}; shorten the label")
        forms = [lambda label, form=template: form.replace("{}", label) for template in templates]
        # [E, K]
        embeddings = open_clip.build_zero_shot_classifier(self.model.eval(), tokenizer, list(labels), forms)
        with torch.no_grad():
            weight = (self.model.logit_scale.exp() * embeddings).T.contiguous()  # type: ignore[operator]
            offset = self.model.logit_bias
            bias = torch.zeros(len(labels)) if offset is None else offset.expand(len(labels)).clone()  # type: ignore[operator]
        return weight, bias


def check_templates(templates: Sequence[str]) -> None:
    """Check that a label has a place in each.

    Raises:
        UsageError: not exactly one, or no template.
    """
    if not templates:
        raise UsageError("--template: expected at least one text with {} in the label's place, like 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(
                f"--template {template!r}: expected one {{}} in the label's place, got {template.count('{}')}; "
                "write it like 'a photo of a {}'"
            )


def find_clip(full_name: str, weights: str) -> Clip:
    """One of open_clip's models with the preprocessing of its weights; loads and downloads nothing.

    Args:
        full_name: NAME or NAME.TAG, as in open_clip.list_pretrained(); NAME may have `/` for `-`, as OpenAI has it.
        weights: `pretrained`, for which there must be a tag, or a file.

    Raises:
        UsageError: unknown name or tag (with close matches), no tag where one is needed, a text tower of others, or
            preprocessing that a card cannot describe.
    """
    name, tag = _split(full_name.replace("/", "-"))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise unknown_name(f"tag of {name}", tag, tags)
    if not tag and weights == "pretrained":
        known = f"{name}.TAG, where TAG is one of {', '.join(tags)}, downloads some" if tags else "nobody published any"
        raise UsageError(f"--clip {name} needs weights: --weights FILE takes a checkpoint of open_clip; {known}")
    config = open_clip.get_model_config(name)
    _check_texts(name, config)
    published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if tag and bool(published.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{name}-quickgelu"
        raise UsageError(f"the weights {tag} were trained with another activation than {name}; take {other}.{tag}")
    return Clip(name=name, tag=tag, config=config, input=_input(name, tag, tags, config))


def load_clip(clip: Clip, weights: str) -> nn.Module:
    """open_clip's model with its weights, in evaluation mode, float32, on the CPU.

    Args:
        clip: which.
        weights: `pretrained` (open_clip's download, or its cache), or a checkpoint of open_clip, read without running
            what is in it.

    Raises:
        ArtefactError: they cannot be had, or do not fit.
    """
    if weights != "pretrained" and not Path(weights).is_file():
        raise ArtefactError(f"no weights at {weights}; expected a checkpoint of open_clip for {clip.full_name}")
    if weights == "pretrained":
        note(f"open_clip loads the weights of {clip.full_name}: from its cache, or else by a download")
    try:
        model: nn.Module = open_clip.create_model(
            clip.name, pretrained=clip.tag if weights == "pretrained" else weights
        )
    except Exception as error:  # hub, HTTP, pickle and tensor errors of several libraries
        reason = " ".join((str(error) or type(error).__name__).split())[:_LONGEST_REASON]
        if weights == "pretrained":
            raise ArtefactError(
                f"the weights of {clip.full_name} cannot be had: {reason}; download them elsewhere and pass the file "
                f"with --clip {clip.full_name} --weights FILE"
            ) from error
        raise ArtefactError(f"{weights}: expected a checkpoint of open_clip for {clip.name}: {reason}") from error
    return model.eval()


def save_texts(model: nn.Module, clip: Clip, path: Path) -> None:
    """Write all but the image tower of a model atomically, so that :func:`load_texts` needs nothing else."""
    tensors = {
        key: tensor.detach().contiguous().clone()
        for key, tensor in model.state_dict().items()
        if not key.startswith("visual.")
    }
    config = {key: value for key, value in clip.config.items() if key != "vision_cfg"}
    header = {_KEY: json.dumps({"schema": _SCHEMA, "name": clip.full_name, "config": config}, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load_texts(path: Path) -> Texts:
    """Read what :func:`save_texts` wrote.

    Raises:
        ArtefactError: missing, or not such a file.
    """
    if not path.is_file():
        raise ArtefactError(
            f"no {path.name} in {path.parent}, which embeds texts; `pocketzoo import --clip` writes it beside the "
            "checkpoint, and it may be copied from there"
        )
    try:
        with safe_open(path, "pt") as stream:
            document = json.loads((stream.metadata() or {}).get(_KEY, "{}"))
            names = stream.keys()
            tensors = {name: stream.get_tensor(name) for name in names}
        if document.get("schema") != _SCHEMA:
            raise ArtefactError(f"{path}: expected `{_KEY}` of the schema {_SCHEMA!r}, got {document.get('schema')!r}")
        _check_texts(document["name"], document["config"])
        model = _without_images(document["config"])
        missing, surplus = model.load_state_dict(tensors, strict=False)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise ArtefactError(f"{path}: not a file of `pocketzoo import --clip` ({error}); import it again") from error
    if missing := [key for key in missing if not key.startswith("visual.")] or surplus:
        raise ArtefactError(f"{path}: its tensors do not fit {document['name']}, like {missing[0]!r}; import it again")
    return Texts(model=model.eval(), config=document["config"])


def _without_images(config: Mapping[str, Any]) -> nn.Module:
    arguments = copy.deepcopy(dict(config))
    made = open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP
    model: nn.Module = made(**arguments, vision_cfg=_NO_IMAGES)
    return model


def _split(full_name: str) -> tuple[str, str]:
    known = open_clip.list_models()
    if full_name in known:
        return full_name, ""
    name, _, tag = full_name.partition(".")
    if name not in known:
        raise unknown_name("CLIP model", name, known)
    return name, tag


def _check_texts(name: str, config: Mapping[str, Any]) -> None:
    text = config["text_cfg"]
    if "multimodal_cfg" in config:
        raise UsageError(
            f"--clip {name}: a CoCa has a third tower; expected a model of an image tower and a text tower"
        )
    if others := text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise UsageError(
            f"--clip {name}: its texts are read by {others} of Hugging Face's transformers, which would be downloaded "
            "each time labels are embedded; only open_clip's own tokenizer is supported"
        )


def _input(name: str, tag: str, tags: Sequence[str], config: Mapping[str, Any]) -> Input:
    """The preprocessing of a tag's weights, or what all of a model's have in common; open_clip's own without any."""
    found = {
        other: {key: open_clip.get_pretrained_cfg(name, other).get(key) for key in _PREPROCESSING}
        for other in ([tag] if tag else tags)
    } or {"": {key: getattr(open_clip.transform.PreprocessCfg(), key) for key in _PREPROCESSING}}
    chosen = next(iter(found.values()))
    if differing := [other for other, values in found.items() if values != chosen]:
        raise UsageError(
            f"--clip {name}: images are prepared otherwise for {differing[0]} than for {next(iter(found))}; say whose "
            f"weights these are: --clip {name}.TAG --weights FILE, where TAG is one of {', '.join(tags)}"
        )
    size = config["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    squash = chosen["resize_mode"] == "squash"
    if chosen["resize_mode"] == "longest" or (not squash and height != width):
        raise UsageError(
            f"--clip {name}: its images of {height} x {width} are made with resize_mode={chosen['resize_mode']!r}, "
            "which the preprocessing here cannot do"
        )
    kernel = "bilinear" if chosen["interpolation"] == "bilinear" else "bicubic"
    return Input(
        colour="RGB",
        size=(height, width),
        resize=Resize(rule="stretch", filter=kernel) if squash else Resize(rule="shorter", edge=height, filter=kernel),
        crop="none" if squash else "centre",
        mean=tuple(chosen["mean"]),
        std=tuple(chosen["std"]),
    )
