"""Comparisons for people: every variant of a family, our files against each peer, and a summary of monospaced text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from zoo.artefact.environment import environment_text
from zoo.base.statistics.intervals import FEWEST, Ratio, ratio, sureness
from zoo.base.tables import markdown_table, plain, rich_table

__all__ = ["against", "details", "faster", "fastest", "markdown", "ours", "summary_table", "tables"]

Row = Mapping[str, Any]

_FORMS = {
    ("parent", "pocketzoo"): "FP32",
    ("pruned", "pocketzoo"): "pruned",
    ("parent", "pocketzoo-int8"): "INT8",
    ("pruned", "pocketzoo-int8"): "pruned INT8",
}
_SHORT = {
    "torch": "torch",
    "torch-channels-last": "ch-last",
    "torch-compile": "compile",
    "ort": "ORT",
    "ort-defaults-int8": "ORT INT8",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO INT8",
}
_TIMES = (
    *(("FP32", variant) for variant in ("torch", "torch-channels-last", "torch-compile", "ort", "openvino")),
    *(("FP32", name) for name in ("FP32", "pruned")),
    *(("INT8", variant) for variant in ("ort-defaults-int8", "openvino-int8")),
    *(("INT8", name) for name in ("INT8", "pruned INT8")),
)
"""Columns of the summary: precision, and a peer or a file of ours."""
_NAME_WIDTH = 21
"""Of the summary's first column: vit_tiny_patch16_224 and tf_efficientnet_lite0 fit."""


def faster(row: Row, reference: Row) -> Ratio:
    """How many times as fast as another row of its run."""
    return ratio(reference["round_ms"], row["round_ms"])


def fastest(rows: Sequence[Row], precision: str) -> Row | None:
    """The fastest peer on a family's unpruned network at a precision, `float32` or `int8`; None where none ran."""
    found = [row for row in _peers(rows) if row["precision"] == precision]
    return min(found, key=lambda row: float(row["p50_ms"])) if found else None


def details(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of one family's table: a line per network and variant.

    Start: from the start of a process to its first answer. Prepare: what comes before that once (converting, compiling)
    and the first start.
    """
    sure = _sure(rows)
    heading = ["<network", "<variant", f"ms ({sure})", "p95 ms", f"vs ORT ({sure})", "top-1 % (95 % CI)", "same %"]
    heading += ["logit diff.", "MB", "peak MB", "prepare s", "start s", "first ms"]
    return heading, [
        [
            _network(row, rows),
            row["variant"],
            _between(row["p50_ms"], row["low_ms"], row["high_ms"], _ms),
            _ms(row["p95_ms"]),
            _against_reference(row),
            _top1(row),
            _or_dash(row["agreement"], lambda share: f"{100 * share:.1f}"),
            f"{row['difference']:.2g}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['convert_seconds'] + row['setup_seconds']:.1f}",
            f"{row['startup_seconds']:.2f}",
            _ms(row["first_ms"]),
        ]
        for row in rows
    ]


def against(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of one family's table: how many times as fast each file of ours is as each peer.

    Peers run the unpruned network.
    """
    rivals = _peers(rows)
    heading = ["<times as fast as", *(_SHORT[rival["variant"]] for rival in rivals)]
    return heading, [[name, *(_ratio(faster(row, rival)) for rival in rivals)] for name, row in _ours(rows)]


def ours(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the closing table: our files of all families, each beside the fastest peer.

    That is the one with the least ms on the family's unpruned network at the file's precision.
    """
    sure = _sure(rows)
    heading = ["<family", "<ours", "top-1 % (95 % CI)", "MMACs", "MB", "peak MB", "start s", f"ms ({sure})"]
    heading += ["<fastest peer", "ms", f"vs it ({sure})"]
    cells = []
    for family, members in _by_family(rows).items():
        for name, row in _ours(members):
            rival = fastest(members, row["precision"])
            cells.append(
                [
                    family,
                    name,
                    _top1(row),
                    f"{row['macs'] / 1e6:.1f}",
                    f"{row['bytes'] / 1e6:.2f}",
                    f"{row['peak_mb']:.0f}",
                    f"{row['startup_seconds']:.2f}",
                    _between(row["p50_ms"], row["low_ms"], row["high_ms"], _ms),
                    _or_dash(rival, lambda found: _SHORT[found["variant"]]),
                    _or_dash(rival, lambda found: _ms(found["p50_ms"])),
                    _ratio(faster(row, rival)) if rival else "-",
                ]
            )
    return heading, cells


def tables(rows: Sequence[Row]) -> list[Table]:
    """What the terminal shows: two tables per family, then the closing one."""
    found = []
    for family, members in _by_family(rows).items():
        found += [rich_table(*details(members), title=family), rich_table(*against(members))]
    return [*found, rich_table(*ours(rows))]


def markdown(rows: Sequence[Row], command: str) -> str:
    """The same as a Markdown page, with the command and the environment."""
    first = rows[0]
    counted = {
        f"{row['pictures']} images of {row['dataset']}" + (f", split `{row['split']}`" if row["split"] else "")
        for row in rows
        if row["pictures"]
    }
    counts = sorted(row["n"] for row in rows)
    facts = [
        f"command: `{command}`",
        f"latency: batch {first['batch']}, threads {first['threads']}, {first['rounds']} processes per variant that "
        f"take turns within a family, {first['warmup']} uncounted inferences each; ms are medians of the processes' "
        f"medians, p95 ms is over all inferences (n = {counts[0]:,} to {counts[-1]:,} per variant)",
        "vs ORT: times as fast as ONNX Runtime with its defaults on the family's unpruned network in float32; ratios "
        "are formed within rounds, their medians shown",
        *_intervals(rows),
        "fastest peer: of the same precision, on the unpruned network",
        "same %: the answer of the exported FP32 graph; logit diff.: the largest difference from its logits on one "
        "picture",
        "MB: of the file that is loaded; peak MB: most resident memory of the whole process; prepare s: converting, "
        "compiling and the first start; start s: from the process' start to its first answer, of which first ms is the "
        "inference",
        f"accuracy and agreement: n = {'; '.join(sorted(counted)) or 'not measured'}",
        f"environment: {environment_text(first['environment'])}",
        f"time: {first['time']}, runs {', '.join(dict.fromkeys(row['run'] for row in rows))}",
    ]
    sections = [markdown_table(*ours(rows))]
    for family, members in _by_family(rows).items():
        sections += [f"## {family}", markdown_table(*details(members)), markdown_table(*against(members))]
    return "\n\n".join(["# Comparison", "\n".join(f"- {fact}" for fact in facts), *sections]) + "\n"


def summary_table(rows: Sequence[Row]) -> str:
    """Milliseconds by network and runtime, then what they come to, as monospaced text of at most 110 columns.

    Of every family the rows of its last run count. The second part names the fastest peer of each precision, so that
    none that is faster than ours goes unseen.

    Args:
        rows: complete rows of bench.runtimes.compare, oldest first.
    """
    families = {
        family: [row for row in members if row["run"] == members[-1]["run"]]
        for family, members in _by_family(rows).items()
    }
    columns = [column for column in _TIMES if any(_time(members, column) for members in families.values())]
    # The precision stands once above each group.
    above = [name if place == 0 or columns[place - 1][0] != name else "" for place, (name, _) in enumerate(columns)]
    heading = [f"{name}\n{_heading(variant)}" for name, (_, variant) in zip(above, columns, strict=True)]
    cells = [
        [_wrapped(name), *(_or_dash(_time(members, column), lambda row: _ms(row["p50_ms"])) for column in columns)]
        for name, members in families.items()
    ]
    times = rich_table(["<\nms per batch", *heading], cells)
    sure = _sure([row for members in families.values() for row in members])
    ratios = ["<best of ours vs ORT FP32", "<FP32 vs fastest FP32 peer", "<INT8 vs fastest INT8 peer"]
    compared = [[_wrapped(family), *_compared(members)] for family, members in families.items()]
    return f"{plain(times)}\n\n{plain(rich_table([f'<ratio ({sure})', *ratios], compared))}\n"


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _NAME_WIDTH))


def _sure(rows: Sequence[Row]) -> str:
    """What the intervals of times and ratios are; the word for the fewest rounds, where rows differ."""
    return sureness(min(len(row["round_ms"]) for row in rows))


def _intervals(rows: Sequence[Row]) -> list[str]:
    if _sure(rows) == sureness(FEWEST):
        return ["95 % CI: of times and ratios by order statistics of the rounds, of accuracy by Wilson's formula"]
    return [
        f"range: of the rounds' medians and ratios; a 95 % interval takes at least {FEWEST} rounds",
        "95 % CI: of accuracy by Wilson's formula",
    ]


def _time(rows: Sequence[Row], column: tuple[str, str]) -> Row | None:
    """A peer on the unpruned network, or our file of this name."""
    _, variant = column
    if variant in _SHORT:
        return next((row for row in _peers(rows) if row["variant"] == variant), None)
    return next((row for name, row in _ours(rows) if name == variant), None)


def _heading(variant: str) -> str:
    if variant in _SHORT:
        return _SHORT[variant].removesuffix(" INT8")
    return "pruned" if "pruned" in variant else "ours"


def _compared(rows: Sequence[Row]) -> list[str]:
    best_name, best = min(_ours(rows), key=lambda found: float(found[1]["p50_ms"]))
    cells = [f"{_against_reference(best)} {best_name}" if best["ratio"] is not None else "-"]
    for precision, name in (("float32", "FP32"), ("int8", "INT8")):
        row, rival = next((row for found, row in _ours(rows) if found == name), None), fastest(rows, precision)
        cells.append(f"{_ratio(faster(row, rival))} {_heading(rival['variant'])}" if row and rival else "-")
    return cells


def _by_family(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["family"] == name] for name in dict.fromkeys(r["family"] for r in rows)}


def _peers(rows: Sequence[Row]) -> list[Row]:
    """A family's peers on its unpruned network."""
    return [row for row in rows if row["form"] == "parent" and row["variant"] in _SHORT]


def _ours(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """A family's files of ours in the order of _FORMS, each with what it is called."""
    return [
        (name, row)
        for (form, variant), name in _FORMS.items()
        for row in rows
        if (row["form"], row["variant"]) == (form, variant)
    ]


def _network(row: Row, rows: Sequence[Row]) -> str:
    """The form, where only one network of the family has it."""
    alike = {other["artefact"] for other in rows if other["form"] == row["form"]}
    return str(row["form"] if len(alike) == 1 else row["artefact"])


def _ms(value: float) -> str:
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


def _ratio(found: Ratio) -> str:
    return _between(found.value, found.low, found.high, lambda value: f"{value:.{2 if value < 10 else 1}f}", unit="x")


def _against_reference(row: Row) -> str:
    """Ratio to ONNX Runtime's defaults; a dash where the unpruned network is not known."""
    if row["ratio"] is None:
        return "-"
    return _ratio(Ratio(value=row["ratio"], low=row["ratio_low"], high=row["ratio_high"]))


def _top1(row: Row) -> str:
    if row["top1"] is None:
        return "-"
    return _between(100 * row["top1"], 100 * row["low"], 100 * row["high"], lambda value: f"{value:.1f}")


def _between(value: float, low: float | None, high: float | None, show: Callable[[float], str], unit: str = "") -> str:
    """`1.2 (1.1-1.3)`, without the interval where there is none."""
    return show(value) + unit + ("" if low is None or high is None else f" ({show(low)}-{show(high)})")


def _or_dash(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if value is None else show(value)
