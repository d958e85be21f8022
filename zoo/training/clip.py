"""CLIP as a start: the embeddings of labels become the classifier of its image tower, an ordinary artefact.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), section
3.1: the logit of a label is the scaled cosine between an image's embedding and that of a sentence about the label; of
several sentences the normalised embeddings are averaged. The image tower is timm's vision transformer of the same
shape, compared with open_clip's before anything is written.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from zoo.artefact.card import Build, Card, Head, Inform, Input, LineageEntry, Resize, Use
from zoo.artefact.predictor import Prediction
from zoo.artefact.preprocess import batch
from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.base.files import CHECKPOINT, code_commit, sha256_file, write_bytes
from zoo.base.progress import note
from zoo.networks.checkpoint import load, save
from zoo.networks.heads import add_head
from zoo.networks.registry import build, count_macs, last_layers
from zoo.networks.weights.labels import read_labels
from zoo.training.pretrained import already

__all__ = ["NOTES", "TEMPLATE", "Source", "ZeroShot", "import_clip", "label_embeddings"]

NOTES = "clip.json"
"""Beside the checkpoint: what its labels were embedded with."""
TEMPLATE = "a photo of a {}"

_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Source:
    """A CLIP of open_clip, and how labels become sentences."""

    name: str
    """Of open_clip's list_models()."""
    weights: str
    """A file, a tag of open_clip's list_pretrained(), or `pretrained`: the first tag."""
    templates: tuple[str, ...] = (TEMPLATE,)

    def __post_init__(self) -> None:
        if self.name not in (known := open_clip.list_models()):
            raise unknown_name("CLIP", self.name, known)
        for template in self.templates:
            if template.count("{}") != 1:
                raise UsageError(f"--template {template!r}: expected one {{}} where the label goes, as in {TEMPLATE!r}")
        if not self.templates:
            raise UsageError(f"expected at least one template, like {TEMPLATE!r}")

    def network(self) -> Any:
        """The network in evaluation mode; a tag downloads, a file does not.

        Raises:
            UsageError: no such tag.
            ArtefactError: the weights cannot be had or do not fit.
        """
        tags = open_clip.list_pretrained_tags_by_model(self.name)
        file = Path(self.weights).is_file()
        if self.weights == "pretrained" and not tags:
            raise UsageError(f"open_clip has no weights for {self.name}; name a file: --weights FILE")
        if not file and self.weights != "pretrained" and self.weights not in tags:
            raise unknown_name(f"file or tag of {self.name}", self.weights, tags)
        chosen = tags[0] if self.weights == "pretrained" else self.weights
        # Some tags were trained with another activation than the model's configuration has.
        quick = not file and bool(open_clip.get_pretrained_cfg(self.name, chosen).get("quick_gelu", False))
        try:
            return open_clip.create_model(self.name, pretrained=chosen, force_quick_gelu=quick).eval()
        except Exception as error:  # of torch, safetensors, huggingface_hub, urllib: whatever was tried
            raise ArtefactError(f"the weights {chosen} of {self.name} cannot be used: {error!s:.300}") from error


@torch.no_grad()
def label_embeddings(network: Any, source: Source, labels: Sequence[str]) -> torch.Tensor:
    """Embeddings of labels, of unit length and then scaled: float32 [K, D], K logits of a unit image embedding.

    Args:
        network: of :meth:`Source.network`.
        source: has the templates.
        labels: K words or names.
    """
    tokenize = open_clip.get_tokenizer(source.name)
    rows = []
    for label in labels:
        sentences = tokenize([template.format(label) for template in source.templates])
        rows.append(network.encode_text(sentences, normalize=True).mean(dim=0))
    scaled: torch.Tensor = nn.functional.normalize(torch.stack(rows), dim=-1) * network.logit_scale.exp()
    return scaled.float()


def import_clip(source: Source, labels: Path, target: Path) -> Card:
    """Make an artefact of a CLIP's image tower that tells labels apart without training.

    Args:
        source: the CLIP.
        labels: a text file with one label per line.
        target: the checkpoint to write.

    Returns:
        The card as written, or of what is there if it is the same import.

    Raises:
        UsageError: a tower that timm does not have, labels that cannot be read, another artefact at `target`.
        ArtefactError: see :meth:`Source.network`.
    """
    begin, words = time.perf_counter(), read_labels(labels)
    weights = sha256_file(Path(source.weights)) if Path(source.weights).is_file() else source.weights
    config = {"clip": source.name, "weights": weights, "templates": list(source.templates), "labels": list(words)}
    if (there := already(target, config)) is not None:
        return there
    network = source.network()
    spec = _input(network, source.name)
    if Path(source.weights).is_file():
        note(
            f"{source.weights} does not say how images were normalised; taken as {source.name}'s default in open_clip: "
            f"mean {spec.mean}, std {spec.std}"
        )
    architecture, arguments, head = _shape(network, source.name)
    model = build(architecture, classes=len(words), channels=3, arguments=arguments)
    add_head(model, head, len(words))
    tower = {f"visual.{name}": tensor for name, tensor in network.visual.state_dict().items()}
    state = {name: tensor for name, tensor in checkpoint_filter_fn(tower, model).items() if name != "head.bias"}
    state["head.0.weight"] = state.pop("head.weight").contiguous()
    state["head.2.weight"] = label_embeddings(network, source, words)
    model.load_state_dict(state, strict=True)
    model.eval()
    _compare(model, network, spec, source.name)
    entry = LineageEntry(
        stage="import",
        config=config,
        parent=None,
        commit=code_commit(),
        summary={"classes": len(words)},
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = Card(
        name=target.parent.resolve().name,
        build=Build(architecture=architecture, arguments=arguments, head=head),
        use=Use(labels=words, input=spec),
        inform=Inform(
            parameters=0,
            bytes=0,
            macs=count_macs(model, spec),
            source=f"open_clip {source.name}, {source.weights}",
            licence=None,
        ),
        lineage=(entry,),
    )
    written = save(model, card, target)
    kept = dataclasses.asdict(source) | {"digest": weights}
    if Path(source.weights).is_file():
        kept["weights"] = str(Path(source.weights).resolve())
    write_bytes(target.with_name(NOTES), json.dumps(kept, indent=2).encode())
    return written


class ZeroShot:
    """The network of a folder that :func:`import_clip` wrote, for other labels; nothing is written."""

    engine = "torch"

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        """Embed `labels`.

        Raises:
            UsageError: fewer than two labels, or a folder that is no CLIP's.
            ArtefactError: see :meth:`Source.network`.
        """
        path = folder / NOTES
        if not path.is_file():
            raise UsageError(f"--labels: {folder} was not made by `pocketzoo import --clip`; its labels are its own")
        self.labels = tuple(dict.fromkeys(filter(None, (label.strip() for label in labels))))
        if len(self.labels) < 2:
            raise UsageError(f"--labels: expected different labels, separated by commas, got {', '.join(labels)!r}")
        found = json.loads(path.read_text(encoding="utf-8"))
        source = Source(name=found["name"], weights=found["weights"], templates=tuple(found["templates"]))
        file = Path(source.weights)
        if file.is_absolute() and (not file.is_file() or sha256_file(file) != found["digest"]):
            raise ArtefactError(
                f"--labels embeds texts with {file}, which is not there, or no longer the file that {folder} was made "
                "of; put it back, or import again"
            )
        self._model, card = load(folder / CHECKPOINT)
        self._spec = card.use.input
        (last,) = last_layers(self._model)
        last.weight = nn.Parameter(label_embeddings(source.network(), source, self.labels))

    @torch.inference_mode()
    def predict(self, images: Sequence[bytes], *, top: int = 5) -> list[Prediction]:
        """As zoo.artefact.predictor.Predictor.predict."""
        shares = self._model(torch.from_numpy(batch(images, self._spec))).softmax(dim=1)
        found = shares.topk(min(top, len(self.labels)), dim=1)
        return [
            Prediction(labels=tuple(self.labels[column] for column in columns), probabilities=tuple(row))
            for row, columns in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]


def _shape(network: Any, name: str) -> tuple[str, dict[str, Any], Head]:
    """timm's name and arguments for an image tower, and the head behind it."""
    tower = network.visual
    if not isinstance(tower, VisionTransformer):
        raise UsageError(
            f"the image tower of {name} is a {type(tower).__name__}; expected a vision transformer, like ViT-B-32's"
        )
    block = tower.transformer.resblocks[0]
    quick = "_quickgelu" if isinstance(block.mlp.gelu, QuickGELU) else ""
    width = tower.conv1.out_channels
    arguments = {
        "img_size": list(tower.image_size),
        "patch_size": tower.patch_size[0],
        "embed_dim": width,
        "depth": len(tower.transformer.resblocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.c_fc.out_features / width,
    }
    return f"vit_base_patch16_clip{quick}_224", arguments, Head(kind="cosine", hidden=tower.output_dim)


def _input(network: Any, name: str) -> Input:
    config = open_clip.get_model_preprocess_cfg(network)
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = config.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash") or height != width:
        raise UsageError(f"{name} resizes images with {mode!r} to {height} x {width}, which a card cannot say")
    return Input(
        colour="RGB",
        size=(height, width),
        resize=Resize(
            rule="shorter" if mode == "shortest" else "stretch",
            edge=height if mode == "shortest" else None,
            filter=config["interpolation"],
        ),
        crop="centre" if mode == "shortest" else "none",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


@torch.inference_mode()
def _compare(model: nn.Module, network: Any, spec: Input, name: str) -> None:
    images = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    wanted = network.encode_image(images, normalize=True)
    features = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    found = model.get_submodule("head.1")(model.get_submodule("head.0")(features))
    if not torch.allclose(found, wanted, atol=_TOLERANCE):
        raise UsageError(
            f"the image tower of {name} computes what timm's vision transformer does not (embeddings differ by "
            f"{(found - wanted).abs().max():.3f}); take another one, like ViT-B-32"
        )
