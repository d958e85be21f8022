"""A card and its lineage as tables: what an artefact expects, and what was done to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.report.blocks import Block, Facts, Table, Text

__all__ = ["card_blocks", "lineage_blocks"]

_FIT = ("fit.epochs", "fit.batch_size", "fit.optimizer", "fit.lr", "fit.schedule", "fit.weight_decay")
_DATA = ("data.name", "data.n.train", "data.n.validation")
_LORA = ("lora.rank", "lora.alpha", "lora.targets")
_SETTINGS = {
    "train": ("model", "weights", "size", *_DATA, *_FIT, "fit.loss", "fit.label_smoothing", *_LORA),
    "prune": ("macs", "params", "latency_ms", "importance", "scope", "depth", "round_to", "steps", "images"),
    "recover": ("distill", "temperature", *_FIT),
    "quantize": ("method", "calibration", "images", "target", "max_drop", "keep"),
}
"""Main values of a stage's config; of a stage that is not here: all."""
_RESULTS = {
    "train": ("validation_top1", "best_epoch", "epochs", "trainable"),
    "recover": ("validation_top1", "best_epoch", "epochs", "trainable"),
    "prune": (
        "macs_ratio",
        "parameters_ratio",
        "blocks",
        "macs_before",
        "macs_after",
        "top1_before",
        "top1_after",
        "importance",
    ),
    "quantize": (
        "verdict",
        "method",
        "drop",
        "drop_low",
        "drop_high",
        "drop_of",
        "agreement",
        "compared_images",
        "speedup",
        "speedup_low",
        "speedup_high",
        "parent_bytes",
        "bytes",
        "calibration_images",
    ),
}
_LABELS = 12


def card_blocks(values: Mapping[str, Any]) -> Iterator[Block]:
    """What the card says: of the file that the report looks at.

    Args:
        values: see bench.report.json_document.document.
    """
    card = values["card"]
    use, inform, spec = card["use"], card["inform"], card["use"]["input"]
    labels = use["labels"]
    file = next(line for line in values["files"] if f"{line['artefact']}/{line['file']}" == values["subject"])
    more = f", … ({len(labels) - _LABELS:,} more)" if len(labels) > _LABELS else ""
    height, width = spec["size"]
    yield Facts(
        rows={
            "File": values["subject"],
            "SHA-256": file["digest"],
            "Task": f"{use['task']}, {len(labels):,} labels",
            "Labels": ", ".join(labels[:_LABELS]) + more,
            "Input": f"{height} x {width} pixels, {spec['colour']}, {spec['dtype']} {spec['layout']}",
            "Preprocessing": _preprocessing(spec),
            "Output": f"{use['output']['kind']}, to be divided by the temperature {use['temperature']:.4g} before the "
            "softmax",
            "Architecture": " ".join(
                [card["build"]["architecture"], *(f"{k}={v}" for k, v in card["build"]["arguments"].items())]
            ),
            "Precision": f"{inform['precision']}, ONNX opset {inform['opset']}",
            "Parameters": f"{inform['parameters']:,}",
            "Multiply-accumulates": f"{inform['macs']:,} for one image",
            "File size": f"{file['bytes']:,} bytes",
            "Source of the first weights": inform["source"] or "not recorded",
            "Licence of the weights": inform["licence"] or "not recorded",
        }
    )
    if len(labels) > _LABELS:
        yield Text(text=f"All {len(labels):,} labels are in report.json and in the file's card.")
    if inform["metrics"]:
        yield Table(
            title="Accuracy that the card records",
            heading=["<data", "<split", "<engine", "n", "top-1 % (95 % CI)", "top-5 %"],
            rows=[
                [
                    found["dataset"],
                    found["split"],
                    found["engine"] or "-",
                    f"{found['n']:,}",
                    f"{100 * found['top1']:.2f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})",
                    "-" if found["top5"] is None else f"{100 * found['top5']:.2f}",
                ]
                for found in inform["metrics"]
            ],
        )


def lineage_blocks(stages: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """Each stage with its main settings and results; then all settings of each.

    Args:
        stages: the lineage, first stage first.
    """
    if not stages:
        yield Text(text="The card records no lineage.")
        return
    for number, stage in enumerate(stages, start=1):
        rows = {
            "Settings": _chosen(stage["config"], _SETTINGS.get(stage["stage"])),
            "Result": _chosen(stage["summary"], _RESULTS.get(stage["stage"])),
            "Took": f"{stage['seconds']:,.1f} s",
            "Seed": "" if stage["seed"] is None else str(stage["seed"]),
            "Commit": stage["commit"] or "",
            "Read the file": f"SHA-256 {stage['parent'][:12]}" if stage["parent"] else "",
        }
        yield Facts(title=f"{number}. {stage['stage']}", rows={term: value for term, value in rows.items() if value})
    yield Table(
        title="All settings and results of all stages",
        heading=["<stage", "<name", "<value"],
        rows=[
            [f"{number} {stage['stage']}", name, _value(value)]
            for number, stage in enumerate(stages, start=1)
            for part in ("config", "summary")
            for name, value in _flat(stage[part])
        ],
        folded=True,
    )


def _preprocessing(spec: Mapping[str, Any]) -> str:
    resize = spec["resize"]
    shape = {
        "shorter": f"the shorter edge becomes {resize['edge']}",
        "cover": f"covers the input enlarged until its shorter edge is {resize['edge']}",
        "stretch": "stretched to the input",
    }[resize["rule"]]
    steps = ["turned as its EXIF orientation says"] if spec["exif"] else []
    steps += [f"{shape} ({resize['filter']}, antialiased)"]
    steps += ["the centre is cut out"] if spec["crop"] == "centre" else []
    steps += [f"8-bit values times {spec['scale']:.6g}", f"minus {_numbers(spec['mean'])}, by {_numbers(spec['std'])}"]
    if spec["range"]:
        steps.insert(0, f"samples of more than 8 bits: {spec['range']:g} is white, as is what is larger")
    if spec["jpeg_draft"]:
        draft = spec["jpeg_draft"]
        steps.insert(0, f"large JPEG files decoded small ({100 * draft['agreement']:.1f}% of answers as before)")
    return "; ".join(steps)


def _numbers(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.4g}" for value in values)


def _chosen(values: Mapping[str, Any], names: Sequence[str] | None) -> str:
    flat = dict(_flat(values))
    if names is None:
        # Digests and lists of nodes are among all values, which stand below.
        names = [name for name, value in flat.items() if not (isinstance(value, str) and len(value) == 64)]
    shown = {name: flat.get(name) for name in names}
    return ", ".join(
        f"{name.removeprefix('fit.')} {_value(value)}" for name, value in shown.items() if value not in (None, "", [])
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _value(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value)) or "-"
    return str(value)
