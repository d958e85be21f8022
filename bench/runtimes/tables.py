"""Comparisons for people: every variant of a family, our files against each peer, and a summary of monospaced text.

A file is held against what runs the very same graph, a pruned one also against what runs the unpruned network. Speed of
random weights stands apart, since nothing is known of the accuracy that it costs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.runtimes.baselines import AGAIN, REFERENCE
from zoo.artefact.environment import environment_text
from zoo.base.statistics.intervals import FEWEST, Ratio, ratio, sureness
from zoo.base.tables import markdown_table, plain, rich_table

__all__ = ["against", "details", "faster", "fastest", "markdown", "noise", "ours", "summary_table", "tables"]

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
    "openvino-bf16": "OpenVINO bf16",
    "openvino-int8": "OpenVINO INT8",
}
_ENGINES = {"onnxruntime": "ORT", "openvino": "OpenVINO"}
_NAME_WIDTH = 21
"""Of the summary's first column: vit_tiny_patch16_224 and tf_efficientnet_lite0 fit."""


def faster(row: Row, reference: Row) -> Ratio:
    """How many times as fast as another row of its run."""
    return ratio(reference["round_ms"], row["round_ms"])


def fastest(rows: Sequence[Row], precision: str, *, artefact: str | None = None) -> Row | None:
    """The fastest peer at a precision, `float32` or `int8`; None where none ran.

    Args:
        rows: of one family.
        precision: of the peer.
        artefact: the network that it runs; None: the family's unpruned one.
    """
    found = [row for row in _peers(rows, artefact) if row["precision"] == precision]
    return min(found, key=lambda row: float(row["p50_ms"])) if found else None


def noise(rows: Sequence[Row]) -> list[Ratio]:
    """How many times as fast the same file in the same runtime is when it is measured twice, for each network."""
    first = {row["artefact"]: row for row in rows if row["variant"] == REFERENCE}
    return [faster(row, first[row["artefact"]]) for row in rows if row["variant"] == AGAIN]


def details(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of one family's table: a line per network and variant.

    Start: from the start of a process to its first answer. Prepare: what comes before that once (converting, compiling)
    and the first start.
    """
    sure = _sure(rows)
    heading = ["<network", "<variant", "<hint", f"ms ({sure})", "paced ms", f"vs ORT ({sure})", "top-1 % (95 % CI)"]
    heading += ["same %", "MB", "peak MB", "prepare s", "start s"]
    return heading, [
        [
            _network(row, rows),
            _variant(row),
            row["hint"],
            _between(row["p50_ms"], row["low_ms"], row["high_ms"], _ms),
            _ms(row["paced_p50_ms"]),
            _against_reference(row),
            _top1(row),
            _or_dash(row["agreement"], lambda share: f"{100 * share:.1f}"),
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['convert_seconds'] + row['setup_seconds']:.1f}",
            f"{row['startup_seconds']:.2f}",
        ]
        for row in rows
    ]


def against(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of one family's table: how many times as fast each file of ours is as each peer.

    A pruned file is held against the peers on the same pruned network, then on the unpruned one.
    """
    variants = dict.fromkeys(row["variant"] for row in _peers(rows))
    heading = ["<times as fast as", "<graph", *(_SHORT[variant] for variant in variants)]
    cells = []
    for name, row in _ours(rows):
        for graph, artefact in _graphs(row):
            rivals = {rival["variant"]: rival for rival in _peers(rows, artefact)}
            found = [_ratio(faster(row, rivals[variant])) if variant in rivals else "-" for variant in variants]
            if rivals:
                cells.append([name, graph, *found])
    return heading, cells


def ours(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the closing table: our files of all families, each beside the fastest peers.

    These are the ones with the least ms at the file's precision: on the same graph, and on the unpruned network.
    """
    sure = _sure(rows)
    heading = ["<family", "<ours", "<engine", "top-1 %", f"ms ({sure})", "paced ms"]
    heading += ["<fastest peer", "<graph", "top-1 %", "ms", f"vs it ({sure})"]
    cells = []
    for family, members in _by_family(rows).items():
        for name, row in _ours(members):
            own = [family, name, _engine(row), _percent(row["top1"]), _interval_ms(row), _ms(row["paced_p50_ms"])]
            cells += [[*own, *rival] for rival in _rivals(row, members)]
    return heading, cells


def _rivals(row: Row, members: Sequence[Row]) -> list[list[str]]:
    """Cells of the fastest peers of a file; a line of dashes where none ran."""
    found = []
    for graph, artefact in _graphs(row):
        rival = fastest(members, row["precision"], artefact=artefact)
        if rival is not None:
            name, top1, pace = _SHORT[rival["variant"]], _percent(rival["top1"]), _ms(rival["p50_ms"])
            found.append([name, graph, top1, pace, _ratio(faster(row, rival))])
    return found or [["-", "-", "-", "-", "-"]]


def tables(rows: Sequence[Row]) -> list[Table]:
    """What the terminal shows: two tables per family, then the closing ones."""
    found = []
    for family, members in _by_family(rows).items():
        found += [rich_table(*details(members), title=family), rich_table(*against(members))]
    return [*found, *(rich_table(*ours(part), title=title) for title, part in _parts(rows))]


def markdown(rows: Sequence[Row], command: str) -> str:
    """The same as a Markdown page, with the command and the environment."""
    first = rows[0]
    counts = sorted(row["n"] for row in rows)
    loads = [row["load_average"] for row in rows if row["load_average"] is not None]
    facts = [
        f"command: `{command}`",
        f"latency: batch {first['batch']}, threads {first['threads']}, {first['rounds']} processes per variant that "
        f"take turns within a family, {first['warmup']} uncounted inferences each; ms are medians of the processes' "
        f"medians (n = {counts[0]:,} to {counts[-1]:,} inferences per variant), one upon another; paced: "
        f"{1000 * first['pace_seconds']:g} ms after the last answer",
        "vs ORT: times as fast as ONNX Runtime with its defaults on the family's unpruned network in float32; ratios "
        "are formed within rounds, their medians shown",
        noise_sentence(rows),
        *_intervals(rows),
        "fastest peer: of the same precision; on the same graph, and for what is pruned also on the unpruned network",
        "hint: what is computed in where the graph says float32; bf16 is measured under bf16, accuracy and speed",
        "same %: the prediction of the exported FP32 graph",
        "MB: of the file that is loaded; peak MB: most resident memory of the whole process; prepare s: converting, "
        "compiling and the first start; start s: from the process' start to its first answer",
        f"accuracy and agreement: {_counted(rows)}",
        f"load while measuring: {min(loads):.1f} to {max(loads):.1f} tasks"
        if loads
        else "load while measuring: unknown",
        f"environment: {environment_text(first['environment'])}",
        f"time: {first['time']}, runs {', '.join(dict.fromkeys(row['run'] for row in rows))}",
    ]
    sections = []
    for title, part in _parts(rows):
        sections += [f"## {title}", markdown_table(*ours(part))]
    for family, members in _by_family(rows).items():
        sections += [f"## {family}", markdown_table(*details(members)), markdown_table(*against(members))]
    return "\n\n".join(["# Comparison", "\n".join(f"- {fact}" for fact in facts), *sections]) + "\n"


def _counted(rows: Sequence[Row]) -> str:
    """What accuracy was measured on."""
    found = {
        f"{row['pictures']:,} images of {row['dataset']}" + (f", split {row['split']}" if row["split"] else "")
        for row in rows
        if row["pictures"]
    }
    return f"n = {'; '.join(sorted(found))}" if found else "not measured"


def noise_sentence(rows: Sequence[Row]) -> str:
    """What ratios are worth here."""
    found = noise(rows)
    if not found:
        return "noise: not measured"
    middles = sorted(one.value for one in found)
    ends = [end for one in found for end in (one.low, one.high) if end is not None]
    spread = f", intervals {min(ends):.2f} to {max(ends):.2f}" if ends else ""
    return (
        f"noise: one file in ONNX Runtime twice is {middles[0]:.2f} to {middles[-1]:.2f} times as fast{spread} "
        f"(n = {len(found)} networks)"
    )


def summary_table(rows: Sequence[Row], *, random: bool = True) -> str:
    """Our files beside the fastest peers, accuracy beside speed, as monospaced text of at most 120 columns.

    Of every family the rows of its last run count. No peer that is faster than ours goes unseen: on each graph it is
    the fastest of the file's precision that is named.

    Args:
        rows: complete rows of bench.runtimes.compare, oldest first.
        random: whether networks with random weights are shown, too.
    """
    rows = [row for row in rows if random or row["weights"] != "random"]
    last = [row for members in _by_family(rows).values() for row in members if row["run"] == members[-1]["run"]]
    parts = [f"{title}\n{plain(rich_table(*_summarised(part)))}" for title, part in _parts(last)]
    machines = dict.fromkeys(environment_text(row["environment"]) for row in last)
    remarks = (f"accuracy: {_counted(last)}", noise_sentence(last), *(f"machine: {machine}" for machine in machines))
    return "\n\n".join([*parts, "\n".join(textwrap.fill(remark, 118) for remark in remarks)])


def _summarised(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The closing table without what is said once: a file's own cells stand on its first line alone."""
    heading, cells = ours(rows)
    keep = [place for place, name in enumerate(heading) if name != "paced ms"]
    found: list[list[str]] = []
    said: list[str] = []
    for line in cells:
        family, name, engine, top1, ms = line[:5]
        own = [_wrapped(family), name, engine, top1, ms.partition(" ")[0]]
        if line[:1] == said[:1]:
            own[0] = ""
        if line[:5] == said:
            own = ["", "", "", "", ""]
        found.append([*own, *(line[place] for place in keep[5:])])
        said = line[:5]
    return ["ms" if name.startswith("ms (") else name for name in (heading[place] for place in keep)], found


def _parts(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Trained networks, then those with random weights, each with what is to be said of them."""
    trained = [row for row in rows if row["weights"] != "random"]
    random = [row for row in rows if row["weights"] == "random"]
    titles = ("Trained networks", "Random weights: speed alone, nothing is known of the accuracy that it costs")
    return [(title, part) for title, part in zip(titles, (trained, random), strict=True) if part]


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


def _by_family(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["family"] == name] for name in dict.fromkeys(r["family"] for r in rows)}


def _peers(rows: Sequence[Row], artefact: str | None = None) -> list[Row]:
    """A family's peers on one of its networks, by default the unpruned one."""
    found = [row for row in rows if row["variant"] in _SHORT]
    return [row for row in found if (row["form"] == "parent" if artefact is None else row["artefact"] == artefact)]


def _graphs(row: Row) -> list[tuple[str, str | None]]:
    """What a file is held against: the network of its own, and for a pruned one that which it was pruned from."""
    same = [("same", row["artefact"])]
    return [*same, ("unpruned", None)] if row["form"] == "pruned" else same


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


def _variant(row: Row) -> str:
    """With the engine, where that was chosen."""
    return f"{row['variant']} ({_engine(row)})" if row["variant"].startswith("pocketzoo") else str(row["variant"])


def _engine(row: Row) -> str:
    return _ENGINES.get(row["engine"], str(row["engine"]))


def _interval_ms(row: Row) -> str:
    return _between(row["p50_ms"], row["low_ms"], row["high_ms"], _ms)


def _percent(value: float | None) -> str:
    return _or_dash(value, lambda share: f"{100 * share:.1f}")


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
