"""Recipes: which networks to train on what, and how to compress them. TOML files in zoo/recipes, or your own."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.artefact.card import Head
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import UsageError, unknown_name
from zoo.base.files import CHECKPOINT, output_root
from zoo.base.settings import merge, nested, parse_setting
from zoo.base.size import Size, height_and_width, parse_size
from zoo.data.folders.reading import Reading, name_of
from zoo.data.splits import Thin
from zoo.training.loop.config import FitConfig
from zoo.training.loop.methods.masks import Mask
from zoo.training.loop.methods.semi_supervised import Unlabelled

__all__ = [
    "LoraConfig",
    "PruneConfig",
    "QuantizeConfig",
    "RecalibrateConfig",
    "Recipe",
    "RecoverConfig",
    "Refit",
    "Run",
    "load_recipe",
    "read_toml",
    "recipe_names",
    "run_names",
    "said",
]

_FOLDER = Path(__file__).parents[1] / "recipes"
# Names of what compress knows; importing it from there would load torch and ONNX Runtime.
_CALIBRATIONS = ("minmax", "mse")
_TARGETS = ("portable", "vnni", "arm", "tensorrt", "cuda", "auto")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA instead of training every weight; see zoo.networks.lora."""

    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    """Scale by alpha / sqrt(rank), not alpha / rank (Kalajdzievski 2023, arXiv 2312.03732)."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How much to prune, and what. At most one of `macs`, `params` and `latency_ms` is the goal."""

    macs: float | None = None
    """Largest share of the multiply-accumulates that stays; 0.5 if no goal is given."""
    params: float | None = None
    """Largest share of the parameters that stays."""
    latency_ms: float | None = None
    """Longest median time of one image in ONNX Runtime on this machine, all cores, in milliseconds."""
    importance: str = "auto"
    """l1, l2, fpgm, taylor, bn or random (see compress.prune.importance), or auto: taylor where there are labelled
    images, else l2."""
    scope: str = "auto"
    """`layer`: every group of layers loses the same share; `global`: the least important units of all groups go;
    `auto`: global with taylor, whose scores mean the same in every layer, else layer."""
    most: float = 0.9
    """Largest share of a group's units that goes with the scope `global`."""
    steps: int = 1
    """Prune in so many steps towards the goal, scoring anew before each."""
    round_to: int = 8
    """Widths stay multiples of this: what the kernels of ONNX Runtime like."""
    depth: str = "none"
    """`auto`: whole residual blocks go as well where at the same goal the loss is smaller so, before any recovery; only
    with the importance taylor, whose images tell. `none`: they stay."""
    embedding: bool = False
    """Prune the width of a transformer's embedding, too."""
    head_dims: bool = False
    """Prune the dimension of a transformer's heads, too."""
    images: int = 256
    """Training images whose gradients the importance `taylor` reads."""
    seed: int = 0

    def __post_init__(self) -> None:
        given = {name: value for name, value in self._goals().items() if value is not None}
        if len(given) > 1:
            raise UsageError(f"prune: give one goal, got {' and '.join(given)}")
        for name in ("macs", "params"):
            share = given.get(name)
            if share is not None and not 0 < share < 1:
                raise UsageError(f"prune.{name} is the share that stays, in (0, 1); got {share}")
        if self.latency_ms is not None and self.latency_ms <= 0:
            raise UsageError(f"prune.latency_ms must be positive, got {self.latency_ms}")
        if self.scope not in ("auto", "layer", "global"):
            raise unknown_name("prune.scope", self.scope, ("auto", "layer", "global"))
        if self.depth not in ("auto", "none"):
            raise unknown_name("prune.depth", self.depth, ("auto", "none"))
        if not 0 < self.most < 1:
            raise UsageError(f"prune.most is the share of a group that may go, in (0, 1); got {self.most}")
        for name in ("steps", "round_to", "images"):
            if getattr(self, name) < 1:
                raise UsageError(f"prune.{name} must be at least 1, got {getattr(self, name)}")

    def _goals(self) -> dict[str, float | None]:
        return {"macs": self.macs, "params": self.params, "latency_ms": self.latency_ms}

    def settled(self, *, labelled: bool) -> PruneConfig:
        """The same without `auto`, for a network with or without labelled images."""
        importance = ("taylor" if labelled else "l2") if self.importance == "auto" else self.importance
        scope = ("global" if importance == "taylor" else "layer") if self.scope == "auto" else self.scope
        return dataclasses.replace(self, importance=importance, scope=scope)

    @property
    def goal(self) -> tuple[str, float]:
        """`macs`, `params` or `latency_ms`, and its value."""
        given = [(name, value) for name, value in self._goals().items() if value is not None]
        return given[0] if given else ("macs", 0.5)


@dataclass(frozen=True, kw_only=True)
class RecalibrateConfig:
    """BatchNorm statistics; see compress.recalibrate."""

    images: int = 1024
    """At most so many training images."""
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class RecoverConfig:
    """Fine-tuning after pruning, with the unpruned network as teacher; see compress.recover."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(epochs=3))
    distill: float = 0.7
    """Weight of the teacher's answers against the labels."""
    temperature: float = 2.0
    """Both answers are softened by it."""
    features: float = 0.0
    """Weight of the teacher's features beside all that: how alike the images of a batch are to each other."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Quantization of an exported graph; see compress.quantize.stage."""

    method: str = "auto"
    """static (calibrated INT8), dynamic (INT8 weights, activations as they come: matrix products only, and an answer
    depends on the images beside it), fp16, or auto, which is static (on GPUs fp16)."""
    images: int = 256
    """Calibration images, from the training split, or drawn from a folder by their names."""
    calibration: str = "minmax"
    """minmax (the least and largest value seen) or mse (the range of least squared error, which clips outliers)."""
    target: str = "portable"
    """What the file is for: portable (any x86, AVX2 without VNNI included), vnni, arm, cuda, tensorrt, or auto (this
    machine's processor). Only `portable` files may move between machines."""
    bias_correction: bool = True
    """Subtract from each bias what quantization adds on average over the calibration images."""
    max_drop: float = 0.5
    """Budget in points of top-1 on validation data; the nodes that cost most stay in float until it holds on one half
    of the images; the other half judges what comes of it."""
    keep: str = "better"
    """`better`: write the file only if it keeps the budget and is faster than its parent on this machine; `any`."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("auto", "static", "dynamic", "fp16"):
            raise unknown_name("quantize.method", self.method, ("auto", "static", "dynamic", "fp16"))
        if self.calibration in ("entropy", "percentile"):
            raise UsageError(
                f"quantize.calibration {self.calibration} is no longer there, as no measurement favoured it; "
                "use mse to clip outliers, else minmax"
            )
        if self.calibration not in _CALIBRATIONS:
            raise unknown_name("quantize.calibration", self.calibration, _CALIBRATIONS)
        if self.target not in _TARGETS:
            raise unknown_name("quantize.target", self.target, _TARGETS)
        if self.images < 1:
            raise UsageError(f"quantize.images (--images) must be at least 1, got {self.images}; 256 is the default")
        if self.keep not in ("better", "any"):
            raise unknown_name("quantize.keep", self.keep, ("better", "any"))
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"quantize.max_drop is in points, 0 to 100; got {self.max_drop}")


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Training once more, on training and validation images together; `pocketzoo refit` fills this in."""

    of: str
    """The artefact whose settings, chosen on validation images, are used."""
    temperature: float = 1.0
    """That artefact's, fitted on images that it had not seen: there are none of these for a refit."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One network: training, then compression."""

    name: str = ""
    """Of the artefact's folder; default: the data's name and the model's."""
    model: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    """Name of an embedded data set, or a folder, or a list."""
    reading: Reading = field(default_factory=Reading)
    """How the folder or list is to be read, where it could mean two things."""
    images_per_split: int | None = None
    split_seed: int = 0
    """Of the splits that are made of a folder; not `train.seed`, so that another seed has the same test."""
    size: Size | None = None
    """Edge of the input in pixels, or [height, width]; default: what the network was pretrained with."""
    weights: str = "none"
    """First weights: none, pretrained or a file."""
    start: str = ""
    """Name of an earlier run, or of an artefact that is there, whose network is adapted; instead of `weights`."""
    head: Head | None = None
    """A classifier of another kind than the architecture's own linear one."""
    lora: LoraConfig | None = None
    mask: Mask | None = None
    """Only a share of the weights may change."""
    thin: Thin | None = None
    """Keep only a share of some classes' training images."""
    labels: float = 1.0
    """Share of the training images whose labels are known."""
    unlabelled: Unlabelled | None = None
    """How to learn from the training images whose labels are not."""
    role: str = "model"
    """`model`, or `control`: trained for comparison, not compressed."""
    test: bool = True
    """Whether the test split is read at the end; not for runs among which one is chosen."""
    test_on: str = ""
    """Data set on whose test split `make table` (`pocketzoo bench accuracy`) measures the artefact; default: `data`.
    Training reads `data` only."""
    minutes: float | None = None
    """Budget of the training, from opening the data to the measured checkpoint: `train.epochs` becomes what ends within
    it, by the pace of the first steps on this machine."""
    refit: Refit | None = None
    """Train on validation images, too; with `train.keep = "last"`."""
    train: FitConfig = field(default_factory=FitConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    recalibrate: RecalibrateConfig = field(default_factory=RecalibrateConfig)
    recover: RecoverConfig = field(default_factory=RecoverConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)

    def __post_init__(self) -> None:
        if self.role not in ("model", "control"):
            raise UsageError(f"role must be 'model' or 'control', got {self.role!r}")
        if self.name in (".", "..") or self.name.startswith(".") or set(self.name) & set("/\\"):
            raise UsageError(f"name must be that of a plain folder (no slash, no dot in front), got {self.name!r}")
        if self.size is not None:
            height_and_width(self.size)
        if self.images_per_split is not None and self.images_per_split < 1:
            raise UsageError(
                f"images_per_split must be at least 1, got {self.images_per_split}; leave it out for the default"
            )
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"minutes (--minutes) must be a positive number, got {self.minutes:g}")
        if self.refit and self.minutes is not None:
            raise UsageError(f"run {self.name!r}: a refit trains for `train.epochs`; leave `minutes` out")
        if self.start and self.weights != "none":
            raise UsageError(f"run {self.name!r}: give `start` or `weights`, not both")
        if self.lora and self.mask:
            raise UsageError(f"run {self.name!r}: give `lora` or `mask`, not both")
        if not 0 < self.labels <= 1:
            raise UsageError(f"labels must be a share of the training images in (0, 1], got {self.labels}")
        if self.unlabelled and self.labels == 1:
            raise UsageError(f"run {self.name!r}: [unlabelled] needs images without labels; set labels = 0.1 or so")

    @property
    def artefact(self) -> str:
        """Name of the artefact's folder."""
        return self.name or f"{name_of(self.data)}-{self.model or self.start}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Runs, in an order in which every `start` comes before its use."""

    run: tuple[Run, ...]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def said(name: str, fact: str) -> str:
    """What the comment on top of a recipe says of `Minutes`, `Hardware` and the like; empty where it says nothing."""
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [line.partition(f"# {fact}:")[2].strip() for line in lines if line.startswith(f"# {fact}:")]
    return found[0] if found else ""


def run_names(name: str) -> list[str]:
    """The names that the runs of a recipe have of their own, in its order.

    Raises:
        UsageError: no such recipe, not TOML, or a run without a name.
    """
    path, document = read_toml(name, _FOLDER, kind="recipe")
    names = [str(run.get("name", "")) for run in document.get("run", [])]
    if not names or not all(names):
        raise UsageError(f"{path}: expected [[run]] tables that all have a name")
    return names


def read_toml(name: str, folder: Path, *, kind: str) -> tuple[Path, dict[str, Any]]:
    """The content of a TOML file of one's own, or of one of those in `folder` by its name.

    Raises:
        UsageError: no such file (with close matches), or not TOML.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = sorted(found.stem for found in folder.glob("*.toml"))
        raise unknown_name(f"{kind} (or TOML file that does not exist)", name, known)
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error


def load_recipe(
    name: str,
    *,
    data: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    settings: Sequence[str] = (),
    network: Callable[[str], str] | None = None,
) -> Recipe:
    """Read a recipe.

    Args:
        name: of a recipe in zoo/recipes, or the path of a TOML file. Its table `defaults` applies to every `[[run]]`,
            its table `scratch` lies above that for those that begin with random weights.
        data: replaces every run's data set.
        model: replaces every run's architecture.
        weights: replaces every run's first weights.
        settings: `train.lr=0.001`, for every run; values are TOML, or else strings.
        network: names the architecture of a run that has none, from its first weights (`none`, `pretrained`, a file).

    Raises:
        UsageError: no such recipe, not TOML, an unknown key (with close matches), a value of the wrong type, no
            data set or model, or a `start` that no earlier run makes.
    """
    path, document = read_toml(name, _FOLDER, kind="recipe")
    defaults, scratch, entries = document.pop("defaults", {}), document.pop("scratch", {}), document.pop("run", [])
    if document:
        raise UsageError(f"{path}: {unknown_name('table', next(iter(document)), ['defaults', 'scratch', 'run'])}")
    if not isinstance(entries, list) or not all(isinstance(table, dict) for table in (defaults, scratch, *entries)):
        raise UsageError(f"{path}: expected one table [defaults] and tables [[run]], and perhaps one table [scratch]")
    override = merge(*(nested(*parse_setting(setting)) for setting in settings))
    flags = {
        key: value for key, value in {"data": data, "model": model, "weights": weights}.items() if value is not None
    }
    tables = [merge(defaults, entry, override, flags) for entry in entries]
    for index, (entry, table) in enumerate(zip(entries, tables, strict=True)):
        first = table.get("weights", "none")
        if table.get("start"):
            if "start" in override and "weights" not in {**entry, **override, **flags}:
                tables[index] = {**table, "weights": "none"}  # the recipe's default is for runs without a start
            continue
        if first == "none":
            tables[index] = table = merge(defaults, scratch, entry, override, flags)
        if network and table.get("data") and not table.get("model") and isinstance(first, str):
            table["model"] = network(first)
    for table in tables:
        # 224x320 as on the command line.
        if isinstance(table.get("size"), str):
            table["size"] = parse_size(table["size"], where="size")
    try:
        recipe = to_dataclass(Recipe, {"run": tables}, path.name)
    except DocumentError as error:
        raise UsageError(str(error)) from None
    _check(recipe, path)
    return recipe


def _check(recipe: Recipe, path: Path) -> None:
    if not recipe.run:
        raise UsageError(f"{path}: has no [[run]]")
    before: list[str] = []
    for run in recipe.run:
        if not run.data:
            raise UsageError(f"{path.name} has no data set of its own; add --data FOLDER (make: DATA=FOLDER)")
        if not run.model and not run.start:
            raise UsageError(f"{path.name} has no model of its own; add --model NAME (make: MODEL=NAME)")
        later = {other.artefact for other in recipe.run} - set(before)
        there = (output_root() / run.start / CHECKPOINT).is_file()
        if run.start and run.start not in before and (run.start in later or not there):
            raise UsageError(
                f"{path.name}: run {run.artefact!r} starts from {run.start!r}, which no earlier run makes and which is "
                f"no artefact in {output_root()}"
            )
        if run.start and (run.model or run.arguments):
            raise UsageError(f"{path.name}: run {run.artefact!r} starts from {run.start!r}, which has its own model")
        if run.artefact in before:
            raise UsageError(f"{path.name}: two runs are called {run.artefact!r}")
        before.append(run.artefact)
