"""The card: everything an artefact says about itself, as one JSON document inside the artefact.

It travels under the key `zoo.card` in the safetensors header and in the ONNX file's `metadata_props`. Cards are
immutable; a stage derives its own from its parent's with :func:`advance`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError, CardError, UsageError, unknown_name

__all__ = [
    "KEY",
    "MAX_BYTES",
    "SCHEMA",
    "Build",
    "Card",
    "Draft",
    "Golden",
    "Head",
    "Inform",
    "Input",
    "LineageEntry",
    "Lora",
    "Metrics",
    "Output",
    "Reference",
    "Resize",
    "Use",
    "advance",
    "allow",
    "from_json",
    "to_json",
]

KEY = "zoo.card"
SCHEMA = "zoo.card/1"
MAX_BYTES = 4 << 20
"""A longer document is refused unread: no honest card comes near it."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA adapters that are still separate from the weights they adapt."""

    targets: tuple[str, ...]
    """Last parts ("qkv", "fc1"; "q", "k", "v" of a fused layer), whole names or patterns; see zoo.networks.lora."""
    rank: int
    alpha: float
    rslora: bool = False
    """Whether the scale is alpha / sqrt(rank) rather than alpha / rank."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns the pooled features into logits."""

    kind: str = "linear"
    """`linear`: one layer; `mlp`: batch norm, a hidden layer with ReLU, batch norm, dropout and the last layer;
    `cosine`: a projection, whose output is brought to length one, and the last layer (what CLIP answers with)."""
    hidden: int = 512
    """Width of the MLP's hidden layer, or of the projection before a cosine, before pruning; 0 there: no projection."""
    dropout: float = 0.5
    """Share of the MLP's hidden outputs that training sets to zero."""

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp", "cosine"):
            raise unknown_name("head.kind", self.kind, ("linear", "mlp", "cosine"))
        if self.hidden < 1 and not (self.kind == "cosine" and self.hidden == 0):
            raise UsageError(f"head.hidden: expected a width of at least 1, got {self.hidden}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"head.dropout: expected a share in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class Build:
    """What is needed to build the network again, beyond its tensors' shapes."""

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the architecture; JSON scalars and lists."""
    heads: Mapping[str, int] = field(default_factory=dict)
    """Attention module name -> number of heads, for attention modules whose heads were pruned."""
    dropped: tuple[str, ...] = ()
    """Names of the residual blocks of which pruning left the shortcut alone."""
    layer: str = ""
    """The network ends after this layer, whose pooled output a linear classifier reads; "": it is whole."""
    head: Head | None = None
    """What replaces the architecture's own classifier; None: nothing."""
    lora: Lora | None = None


@dataclass(frozen=True, kw_only=True)
class Resize:
    """How an image gets its size before cropping."""

    rule: str
    """`shorter`: the shorter edge becomes `edge`, the aspect ratio stays; `cover`: likewise, to the smallest size that
    covers the input enlarged until its shorter edge is `edge`; `stretch`: straight to the input size."""
    edge: int | None = None
    """Length in pixels; only for `shorter` and `cover`, which are the same for a square input."""
    filter: str = "bilinear"
    """nearest, bilinear, bicubic or lanczos; always antialiased (Pillow's filters are)."""

    def __post_init__(self) -> None:
        if self.rule not in ("shorter", "cover", "stretch"):
            raise CardError(f"use.input.resize.rule: expected 'shorter', 'cover' or 'stretch', got {self.rule!r}")
        if (self.rule == "stretch") == (self.edge is not None):
            raise CardError("use.input.resize.edge: given exactly when the rule is 'shorter' or 'cover'")
        if self.filter not in ("nearest", "bilinear", "bicubic", "lanczos"):
            raise CardError(f"use.input.resize.filter: expected a Pillow filter name, got {self.filter!r}")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What decoding large JPEG files small (at 1/2, 1/4 or 1/8 of their size) changes: measured before it is on.

    Measured on images so large that all of them are decoded small.
    """

    dataset: str
    split: str
    digest: str
    """SHA-256 of the data set; see zoo.data.dataset.Dataset.digest."""
    n: int
    """Number of images."""
    agreement: float
    """Share of them whose answer stays the same."""
    top1_before: float
    """Share of them recognised when they are decoded whole; a fraction, not per cent."""
    top1_after: float
    """Share of them recognised when they are decoded small."""
    max_drop: float
    """Budget for the difference that was allowed, a fraction."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise CardError(f"use.input.jpeg_draft.n: expected at least one image, got {self.n}")
        for name in ("agreement", "top1_before", "top1_after", "max_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise CardError(f"use.input.jpeg_draft.{name}: expected a fraction, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Input:
    """The network's input and the one way from an image to it: decode, resize, crop, scale, normalise."""

    name: str = "image"
    dtype: str = "float32"
    layout: str = "NCHW"
    colour: str
    """RGB (3 channels) or L (1 channel, greyscale)."""
    size: tuple[int, int]
    """Height and width in pixels."""
    resize: Resize
    crop: str = "none"
    """`centre` or `none`."""
    scale: float = 1 / 255
    """Multiplies the 8-bit values before mean and standard deviation are applied."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif: bool = True
    """Whether the EXIF orientation is applied."""
    jpeg_draft: Draft | None = None
    """Large JPEG files are decoded small, which is faster; what that was measured to change. None: they are not."""
    range: float | None = None
    """The sample of more than 8 bits that is white, larger ones too, where the file does not say; None: 65535 of 16
    bits, and samples of 32 bits or floating point are refused."""

    def __post_init__(self) -> None:
        channels = {"RGB": 3, "L": 1}.get(self.colour)
        if channels is None:
            raise CardError(f"use.input.colour: expected 'RGB' or 'L', got {self.colour!r}")
        if len(self.mean) != channels or len(self.std) != channels:
            raise CardError(
                f"use.input: {self.colour} wants {channels} values of mean and std, got {self.mean} and {self.std}"
            )
        if min(self.std) <= 0:
            raise CardError(f"use.input.std: expected positive values, got {self.std}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise CardError(f"use.input.size: expected (height, width) in pixels, got {self.size}")
        if self.crop not in ("centre", "none"):
            raise CardError(f"use.input.crop: expected 'centre' or 'none', got {self.crop!r}")
        least = min(self.size) if self.resize.rule == "cover" else max(self.size)
        if self.resize.edge is not None and self.resize.edge < least:
            raise CardError(f"use.input.resize.edge: {self.resize.edge} is less than the crop {self.size}")
        if (self.resize.rule == "stretch") == (self.crop == "centre"):
            raise CardError("use.input: 'shorter' and 'cover' go with the crop 'centre', 'stretch' with 'none'")
        if self.range is not None and not 0 < self.range < math.inf:
            raise CardError(f"use.input.range: expected the positive sample that is white, got {self.range}")
        if self.dtype != "float32" or self.layout != "NCHW":
            raise CardError(f"use.input: expected float32 NCHW, got {self.dtype} {self.layout}")

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return len(self.mean)

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width in pixels that an image covers before it is cropped; the size itself where nothing is."""
        height, width = self.size
        edge, shorter = self.resize.edge, min(self.size)
        if edge is None:
            return self.size
        return (edge, edge) if self.resize.rule == "shorter" else (height * edge // shorter, width * edge // shorter)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one example."""
        return (self.channels, *self.size)


@dataclass(frozen=True, kw_only=True)
class Output:
    """The network's output: one logit per label."""

    name: str = "logits"
    kind: str = "logits"

    def __post_init__(self) -> None:
        if self.kind != "logits":
            raise CardError(f"use.output.kind: expected 'logits', got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A self-check: the answer this very file gave to an image that anyone can draw again."""

    rule: str
    """How the image is drawn from the seed; see zoo.artefact.preprocess.golden_image."""
    seed: int
    probabilities: tuple[float, ...]
    """ONNX Runtime's, one per label."""
    engines: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Other engine (zoo.artefact.engines.runtimes) -> its probabilities. One that has none may not answer."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What answers on the validation images look like, to notice drift later."""

    mean_confidence: float
    """Mean probability of the predicted class."""
    histogram: Mapping[str, int]
    """Label -> number of validation images predicted as it."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a consumer must know to use the artefact."""

    task: str = "image-classification"
    labels: tuple[str, ...]
    input: Input
    output: Output = field(default_factory=Output)
    temperature: float = 1.0
    """Logits are divided by it before the softmax; fitted on validation data."""
    golden: Golden | None = None
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise CardError(f"use.labels: expected at least two distinct labels, got {list(self.labels)[:10]}")
        if not 0 < self.temperature < float("inf"):
            raise CardError(f"use.temperature: expected a positive number, got {self.temperature}")
        if self.golden is not None:
            for answer in (self.golden.probabilities, *self.golden.engines.values()):
                if len(answer) != len(self.labels):
                    raise CardError(f"use.golden: {len(answer)} probabilities for {len(self.labels)} labels")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Accuracy of exactly these bytes on one split. Fractions, not per cent."""

    dataset: str
    split: str
    n: int
    """Number of images."""
    top1: float
    low: float
    high: float
    """Wilson 95 % interval of top1."""
    top5: float | None = None
    """Absent for fewer than six labels."""
    engine: str | None = None
    """What computed the answers, a name of zoo.artefact.engines.runtimes or `torch`; None: older than this key."""


@dataclass(frozen=True, kw_only=True)
class Inform:
    """Facts for people and tables."""

    precision: str = "float32"
    opset: int | None = None
    parameters: int
    macs: int
    """Multiply-accumulates for one example."""
    bytes: int
    """Size of the weights, in bytes (the file adds its card and structure)."""
    graph: str | None = None
    """SHA-256 of an ONNX file's network, its card left out; see zoo.artefact.onnx_file.digest. None in checkpoints."""
    licence: str | None = None
    source: str | None = None
    """Where the first weights came from."""
    metrics: tuple[Metrics, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LineageEntry:
    """One step of the lineage."""

    stage: str
    config: Mapping[str, Any]
    parent: str | None
    """SHA-256 of the file this stage read; None for the first."""
    seed: int | None = None
    commit: str | None = None
    """Commit of the code that ran."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What the stage did, in numbers; of a training also where and when (the `environment` that rows name, too)."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Card:
    """The whole document."""

    schema: str = SCHEMA
    name: str
    build: Build
    use: Use
    inform: Inform
    lineage: tuple[LineageEntry, ...] = ()

    def metrics(self, split: str, engine: str | None = None) -> Metrics | None:
        """The accuracy on `split` ("validation", "test"), if these bytes were measured on it.

        Args:
            split: its name.
            engine: whose answers; None: those that were measured first. Older cards do not say whose.
        """
        found = (m for m in self.inform.metrics if m.split == split and (engine is None or m.engine in (None, engine)))
        return next(found, None)

    @property
    def refit_of(self) -> str | None:
        """Of what the last training was a refit, on training and validation images together; None: it was none.

        Such a network has no validation accuracy.
        """
        trained = [entry.config for entry in self.lineage if entry.stage == "train"]
        refit = trained[-1].get("refit") if trained else None
        return str(refit["of"]) if isinstance(refit, Mapping) else None


_CHECKPOINT_STAGES = ("import", "train", "merge", "resize", "prune", "recalibrate", "recover")


def allow(card: Card, stage: str) -> None:
    """Check that `stage` may follow the card's lineage.

    The order is: merge LoRA, then prune, recalibrate and recover, then export, then quantize. The exporter folds
    BatchNorm, and adapters that are still separate would be pruned apart from the weights they adapt.

    Raises:
        ArtefactError: it may not; says what to do first.
    """
    done = [entry.stage for entry in card.lineage]
    if stage == "import" and done:
        raise ArtefactError(f"{card.name}: `import` makes an artefact of a pretrained network, so it can only be first")
    if stage == "merge":
        if card.build.lora is None:
            raise ArtefactError(f"{card.name}: there are no LoRA adapters to merge")
    elif card.build.lora is not None:
        raise ArtefactError(
            f"{card.name}: its LoRA adapters are not merged yet; run `pocketzoo merge` before `{stage}`"
        )
    if "quantize" in done and stage == "quantize":
        raise ArtefactError(f"{card.name}: already quantized; quantize the file it was made from, model.onnx beside it")
    if "quantize" in done:
        raise ArtefactError(f"{card.name}: already quantized; `{stage}` wants an artefact from before `quantize`")
    if "export" in done and stage != "quantize":
        raise ArtefactError(
            f"{card.name}: already exported to ONNX; `{stage}` wants the checkpoint (model.safetensors)"
        )
    if stage == "quantize" and "export" not in done:
        raise ArtefactError(f"{card.name}: a checkpoint; run `pocketzoo export` first and quantize the ONNX file")
    if stage not in (*_CHECKPOINT_STAGES, "export", "quantize"):
        raise ArtefactError(f"{card.name}: unknown stage {stage!r}")


def advance(card: Card, entry: LineageEntry, *, name: str | None = None) -> Card:
    """The card of the artefact that the stage `entry` makes from the artefact of `card`.

    Measured facts that belong to the parent's bytes (metrics, golden answer, reference, what decoding JPEG files small
    changes) do not carry over.

    Raises:
        ArtefactError: the stage may not follow the lineage, or does not name its parent's digest.
    """
    allow(card, entry.stage)
    if entry.parent is None:
        raise ArtefactError(f"{card.name}: stage {entry.stage!r} must record the digest of the file it read")
    return dataclasses.replace(
        card,
        name=name or card.name,
        use=dataclasses.replace(
            card.use, golden=None, reference=None, input=dataclasses.replace(card.use.input, jpeg_draft=None)
        ),
        inform=dataclasses.replace(card.inform, metrics=()),
        lineage=(*card.lineage, entry),
    )


def to_json(card: Card) -> str:
    """The card as JSON with sorted keys.

    Raises:
        CardError: a value is not JSON (NaN included), or the document exceeds MAX_BYTES.
    """
    document = dataclasses.asdict(card)
    # Left out where it says nothing, so that versions which do not know it read such cards, too.
    if card.use.input.range is None:
        del document["use"]["input"]["range"]
    if not card.build.dropped:
        del document["build"]["dropped"]
    if card.use.golden and not card.use.golden.engines:
        del document["use"]["golden"]["engines"]
    for metrics in document["inform"]["metrics"]:
        if metrics["engine"] is None:
            del metrics["engine"]
    try:
        text = json.dumps(document, sort_keys=True, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise CardError(f"card of {card.name!r}: {error}") from error
    if size > MAX_BYTES:
        raise CardError(f"card of {card.name!r}: {size} bytes, at most {MAX_BYTES} are allowed")
    return text


def from_json(text: str | None, *, where: str) -> Card:
    """Read a card. `where` names the file in errors; `text` is None where the file has no card.

    Raises:
        CardError: missing, not JSON, of another schema, a key missing or unknown, or a value of the wrong type.
    """
    if text is None:
        raise CardError(
            f"{where}: no `{KEY}` in its metadata, so its labels and preprocessing are unknown; "
            "artefacts written by `pocketzoo train`, `pocketzoo import` and `pocketzoo export` have one"
        )
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise CardError(f"{where}: `{KEY}` has more than {MAX_BYTES} bytes")
    try:
        document = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        # An escaped half of a surrogate pair is valid JSON, but no text that could be written again.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CardError(f"{where}: `{KEY}` is not valid JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise CardError(
            f"{where}: `{KEY}` has the schema {schema!r}, this version reads {SCHEMA!r}; "
            "write it again with `pocketzoo export`"
        )
    try:
        return to_dataclass(Card, document, "card")
    except (DocumentError, CardError, UsageError) as error:
        raise CardError(f"{where}: {error}") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large a number")
    return value
