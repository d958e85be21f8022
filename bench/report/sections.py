"""The parts of a report's page, in their order; whatever numbers they show are those of report.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.report.blocks import Block, Command, Facts, Figure, Gallery, Section, Shown, Table, Text
from bench.report.card_tables import card_blocks, lineage_blocks
from bench.report.compression_tables import METHOD, busy_note, compression_tables
from bench.report.figures import draw_curve, draw_reliability, draw_report_confusion
from bench.report.json_document import document
from bench.report.measure import Report, name_of
from bench.report.quality import Answers
from bench.runtimes.tables import details
from compress.quantize.report import read_report, sentence
from zoo.artefact.environment import environment_text
from zoo.explain.predictions.confusion import most_confused

__all__ = ["headline", "pictures", "sections"]

_ROWS = 20
"""Of a table by label that are shown at once."""
_BEFORE = "temperature 1"
_NO_LABELS = "The images have no labels, so that nobody can say which answers are right; --data or --split would."


def headline(report: Report) -> dict[str, str]:
    """What one wants to know first of the file that the report looks at: a few names and values."""
    line = report.subject
    found = {"file that these numbers are of": line.path.name}
    if line.metrics:
        found["top-1 accuracy"] = f"{100 * line.metrics.top1:.2f}%"
        found["95 % interval"] = f"{100 * line.metrics.low:.1f} to {100 * line.metrics.high:.1f}%"
    found["file size"] = f"{line.path.stat().st_size / 1e6:.2f} MB"
    found["multiply-accumulates"] = f"{line.card.inform.macs / 1e6:.1f} M"
    for threads, timing in line.timings.items():
        found[f"median latency, {threads} thread{'s' * (threads > 1)}"] = f"{timing.p50_ms:.3f} ms"
    against = [comparison for comparison in report.comparisons if comparison.path == line.path]
    if against:
        origin = name_of(against[-1].reference)
        found[f"smaller than {origin}"] = f"{against[-1].smaller:.2f}x"
        for threads, speed in against[-1].speed.items():
            found[f"faster than {origin}, {threads} thread{'s' * (threads > 1)}"] = f"{speed.value:.2f}x"
    return found


def sections(report: Report) -> list[Section]:
    """All parts of the page: what was reached first, where it comes from last.

    A part that cannot be there is a sentence that says why.
    """
    values = document(report)
    parts: dict[str, tuple[str, Iterator[Block]]] = {
        "compression": ("Compression, step by step", _compression(report)),
        "confusion": ("Confusion matrix", _judged(report, _confusion)),
        "errors": ("Worst errors", _judged(report, _errors)),
        "classes": ("Per class", _judged(report, _classes)),
        "reliability": ("Reliability", _judged(report, _reliability)),
        "peers": ("Latency beside other runtimes", _peers(report)),
        "curves": ("Learning curves", _curves(report)),
        "card": ("Card", card_blocks(values)),
        "lineage": ("Lineage", lineage_blocks(values["lineage"])),
        "measured": ("How this was measured", _measured(report, values)),
        "method": ("Method", iter([Text(text=" ".join(METHOD.split()))])),
    }
    return [Section(ident=name, title=title, blocks=tuple(blocks)) for name, (title, blocks) in parts.items()]


def pictures(report: Report) -> dict[str, bytes]:
    """The PNG files that the parts name."""
    found = {}
    for number, curve in enumerate(report.curves):
        found[f"curve-{number}-loss"], found[f"curve-{number}-top1"] = draw_curve(curve)
    if report.answers:
        found["confusion"] = draw_report_confusion(report.answers.confusion, report.subject.card.use.labels)
        found["reliability-before"] = draw_reliability(report.answers.before, _BEFORE)
        found["reliability-after"] = draw_reliability(report.answers.after, _after(report.answers))
        found |= {f"error-{number}": error.picture for number, error in enumerate(report.answers.errors)}
    return found


def _measured(report: Report, values: Mapping[str, Any]) -> Iterator[Block]:
    pace, split = report.latency, values["split"]
    digest = f" (SHA-256 {values['dataset_digest'][:12]})" if values["dataset_digest"] else ""
    counted = f"{values['n']:,} images of {values['dataset']}" + (f", split {split}" if split else ", without labels")
    yield Command(text=report.command)
    yield Facts(
        rows={
            "Images": f"n = {counted}{digest}; the same for every file",
            "Latency": f"one image, {pace.rounds} {'processes' if pace.rounds > 1 else 'process'} per file that take "
            f"turns, {pace.seconds:g} s each after {pace.warmup} uncounted inferences, one session alive at a time; "
            "ratios are medians over the rounds",
            "Engines": "; ".join(f"{name_of(line.path)}: {line.engine_reason}" for line in report.lines),
            "Environment": environment_text(report.environment),
            "Time": f"{report.time}, run {report.run}",
        }
    )


def _curves(report: Report) -> Iterator[Block]:
    if not report.curves and not report.curve_problems:
        yield Text(text="No log of a training is beside this artefact, nor beside what it was made from.")
    for number, curve in enumerate(report.curves):
        title = f"{curve.artefact}, stage {curve.stage}"
        best = next((row for row in curve.epochs if row["epoch"] == curve.best_epoch), None)
        kept = "no epoch was better than what it began with"
        if best:
            reached = "" if best["validation_top1"] is None else f", validation top-1 {_percent(best, 1)}%"
            kept = f"the weights of epoch {curve.best_epoch} were kept{reached}"
        yield Figure(
            names=(f"curve-{number}-loss", f"curve-{number}-top1"),
            alt=f"Learning curves of {title}: loss and accuracy of {len(curve.epochs)} epochs; {kept}.",
            caption=f"{title}: {kept}. The loss in training is that of augmented images, with the training's own "
            "loss function.",
        )
        yield Table(
            title=f"Epochs of {title}; {kept}",
            heading=["epoch", "learning rate", "loss", "validation loss", "validation top-1 %", "seconds"],
            rows=[
                [
                    f"{row['epoch']:.0f}" + (" (kept)" if row is best else ""),
                    _number(row["lr"], "{:.3g}"),
                    _number(row["loss"], "{:.4f}"),
                    _number(row["validation_loss"], "{:.4f}"),
                    _percent(row, 2),
                    _number(row["seconds"], "{:.1f}"),
                ]
                for row in curve.epochs
            ],
            folded=True,
        )
    for problem in report.curve_problems:
        yield Text(text=problem)


def _compression(report: Report) -> Iterator[Block]:
    if not report.comparisons:
        yield Text(
            text="There is nothing smaller or larger of the same origin here to compare with; "
            "pocketzoo compress and pocketzoo quantize make a network smaller."
        )
    titles = ("Files, parents first", "Differences on the same images", "Labels that lost most recall")
    for title, (heading, rows) in zip(titles, compression_tables(report), strict=True):
        if rows:
            yield Table(title=title, heading=heading, rows=rows)
        if title == titles[0] and (busy := busy_note(report)):
            yield Text(text=busy)
    for line in report.lines:
        told = read_report(line.path)
        if told and told.get("digest") == line.digest:
            name = f"{line.path.parent.name}/{line.path.name}"
            yield Text(text=f"{name}, when it was quantized: {sentence(told, line.path)}.")
    for remark in report.remarks:
        yield Text(text=remark)


def _judged(report: Report, part: Callable[[Report, Answers], Iterator[Block]]) -> Iterator[Block]:
    """A part about right and wrong answers."""
    if report.answers is None:
        yield Text(text=_NO_LABELS)
    else:
        yield from part(report, report.answers)


def _confusion(report: Report, answers: Answers) -> Iterator[Block]:
    counts, labels = answers.confusion, report.subject.card.use.labels
    pairs = most_confused(counts, labels, 10)
    worst = "; ".join(f"{pair.count} of {pair.n} images of {pair.true} taken for {pair.answered}" for pair in pairs[:3])
    yield Figure(
        names=("confusion",),
        alt=f"Confusion matrix of {len(labels):,} labels. {worst or 'No image was answered wrongly'}.",
        caption=f"Rows: true labels; columns: answers of {name_of(report.subject.path)}; {int(counts.sum()):,} images, "
        f"{answers.wrong:,} answered wrongly.",
    )
    if pairs:
        yield Table(
            title="Most confused",
            heading=["<true label", "<answered", "images", "of the true label's n", "share %"],
            rows=[
                [pair.true, pair.answered, f"{pair.count:,}", f"{pair.n:,}", f"{100 * pair.share:.1f}"]
                for pair in pairs
            ],
        )
    if len(labels) <= _ROWS:
        yield Table(
            title="The matrix in numbers: true labels down, answers across",
            # A label's own "<" would be taken for the mark of a text column.
            heading=["<true label", *("<" + label if label.startswith("<") else label for label in labels)],
            rows=[[label, *map(str, row)] for label, row in zip(labels, counts.tolist(), strict=True)],
            folded=True,
        )


def _classes(report: Report, answers: Answers) -> Iterator[Block]:
    heading = ["<label", "precision %", "recall %", "F1 %", "n"]
    rows = [
        [row.label, *(f"{100 * share:.1f}" for share in (row.precision, row.recall, row.f1)), f"{row.n:,}"]
        for row in answers.classes
    ]
    yield Text(text=f"Answers of {name_of(report.subject.path)}.")
    if answers.averages:
        mean = answers.averages
        yield Text(
            text=f"Means over the {mean.classes:,} labels that have images, each counted the same: precision "
            f"{100 * mean.precision:.1f}%, recall {100 * mean.recall:.1f}%, F1 {100 * mean.f1:.1f}%."
        )
    yield Table(title="Worst F1 first", heading=heading, rows=rows[:_ROWS])
    if rows[_ROWS:]:
        yield Table(title=f"The other {len(rows) - _ROWS:,} labels", heading=heading, rows=rows[_ROWS:], folded=True)


def _reliability(report: Report, answers: Answers) -> Iterator[Block]:
    before, after = answers.before, answers.after
    titles = (_BEFORE, _after(answers))
    errors = f"{100 * before.error:.2f}% at {titles[0]}, {100 * after.error:.2f}% at {titles[1]}"
    errors = f"{name_of(report.subject.path)}: {errors}"
    fitted = " The temperature was fitted on this very split." if report.pictures.split == "validation" else ""
    yield Figure(
        names=("reliability-before", "reliability-after"),
        alt=f"Reliability diagrams of {len(after.bins)} bins: expected calibration error of {errors}.",
        caption=f"Expected calibration error of {errors}.{fitted} Bars that reach the diagonal are as often right "
        "as they claim; a bin with few images says little.",
    )
    heading = ["confidence"]
    for title in titles:
        heading += [f"n, {title}", f"confidence %, {title}", f"accuracy %, {title}"]
    yield Table(
        title="The bins in numbers",
        heading=heading,
        rows=[
            [
                f"{100 * old.low:.1f} to {100 * old.high:.1f}%",
                *(
                    cell
                    for entry in (old, new)
                    for cell in (f"{entry.n:,}", _share(entry.confidence), _share(entry.accuracy))
                ),
            ]
            for old, new in zip(before.bins, after.bins, strict=True)
        ],
        folded=True,
    )


def _errors(report: Report, answers: Answers) -> Iterator[Block]:
    file = name_of(report.subject.path)
    if not answers.errors:
        yield Text(text=f"{file} answered no image wrongly.")
        return
    yield Text(
        text=f"The {len(answers.errors)} of {answers.wrong:,} wrong answers of {file} with the least probability of "
        "the true label, as the network sees the images. Some may be labelled wrongly."
    )
    told = [", ".join(f"{label} {100 * share:.1f}%" for label, share in error.top) for error in answers.errors]
    truths = [f"{100 * error.true_probability:.2g}%" for error in answers.errors]
    yield Gallery(
        pictures=[
            Shown(
                name=f"error-{number}",
                alt=f"Image {error.name}: {error.truth}, answered {error.answer}",
                heading=f"{error.truth} taken for {error.answer}",
                lines=[top, f"true label {share}", error.name],
            )
            for number, (error, top, share) in enumerate(zip(answers.errors, told, truths, strict=True))
        ],
        table=Table(
            title="Worst first",
            heading=["<picture", "<true label", "<answered", "true label's probability", "<most probable"],
            rows=[
                [error.name, error.truth, error.answer, share, top]
                for error, top, share in zip(answers.errors, told, truths, strict=True)
            ],
        ),
    )


def _peers(report: Report) -> Iterator[Block]:
    rows = report.peers.rows
    if rows:
        first = rows[0]
        yield Text(
            text=f"Measured on {first['time']} with batch {first['batch']}, {first['threads']} threads, "
            f"{first['rounds']} processes per variant that take turns; {environment_text(first['environment'])}."
        )
        heading, cells = details(rows)
        yield Table(title="The newest comparison that has one of these files", heading=heading, rows=cells)
        return
    if report.peers.problem:
        yield Text(text=report.peers.problem)
    yield Text(text="Nothing was measured of these very files beside torch, ONNX Runtime and OpenVINO. This does it:")
    yield Command(text=f"pocketzoo bench compare {report.subject.path.parent}")


def _after(answers: Answers) -> str:
    return f"temperature {answers.after.temperature:.3f} (the card's)"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _percent(row: Mapping[str, float | None], digits: int) -> str:
    share = row["validation_top1"]
    return "-" if share is None else f"{100 * share:.{digits}f}"
