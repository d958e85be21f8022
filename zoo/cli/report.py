"""Commands that give evidence: an artefact against its parents, and against what else there is to pick."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.app import Artefact, Artefacts, AsJson, Data, app, bench, console, notes_of
from zoo.cli.pictures import Images, Split, pictures_of
from zoo.errors import ArtefactError, UsageError
from zoo.files import GRAPH, output_root, write_bytes

__all__ = ["compare", "report", "shapes"]

Peers = Annotated[
    str | None,
    typer.Option(
        "--peers",
        help="Comma-separated: torch, torch-channels-last, torch-compile, ort, ort-defaults-int8, openvino, "
        "openvino-int8. Default: all that are installed but torch-compile, which takes half a minute to compile each.",
        show_default=False,
    ),
]
Threads = Annotated[int, typer.Option(help="Per inference, the same for all variants; 0: all cores.")]
Batch = Annotated[int, typer.Option(help="Images per inference.")]
Rounds = Annotated[int, typer.Option(help="Processes per variant; they take turns.")]
Seconds = Annotated[float, typer.Option(help="Measured time per process.")]


@app.command()
def report(
    artefact: Artefact,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Artefact to compare with. Default: what the lineage says it was made from."),
    ] = None,
    split: Split = "validation",
    data: Data = None,
    images: Images = None,
    threads: Annotated[int, typer.Option(help="Timed beside 1 thread; 0: all cores.")] = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 0.3,
    as_json: AsJson = False,
) -> None:
    """Compare an artefact's ONNX files with what they were made from; writes report.md and report.json beside them."""
    from bench.report import artefact_files, measure_report
    from bench.report_text import document, markdown, tables
    from zoo.graph import read_card
    from zoo.latency import LatencyConfig

    path = artefact_files(artefact)[0]
    pictures = pictures_of(path, read_card(path), images=images, data=data, split=split)
    options: dict[str, Any] = {
        "--against": against,
        "--split": None if images else split,
        "--data": data,
        "--images": images,
    }
    options |= {"--threads": threads or None, "--rounds": rounds, "--seconds": seconds}
    done = measure_report(
        artefact,
        pictures,
        against=against,
        latency=LatencyConfig(threads=threads, rounds=rounds, seconds=seconds),
        command=_command(["report", str(artefact)], options),
    )
    values = document(done)
    write_bytes(path.with_name("report.json"), json.dumps(values, indent=2).encode())
    write_bytes(path.with_name("report.md"), markdown(done).encode())
    if as_json:
        print(json.dumps(values))
        return
    print(f"{done.artefact}: {pictures.name}, {split}, n = {len(pictures.samples)}")
    for table in tables(done):
        print()
        console().print(table)
    for line in ("", *done.remarks, path.with_name("report.md")):
        print(line)


@bench.command()
def compare(
    artefacts: Artefacts = None,
    peers: Peers = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="Folder of pictures for the peers that quantize. Default: training images."),
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="At most so many of them.")] = 256,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Measure every variant's accuracy on the validation split, too.")
    ] = False,
    images: Images = None,
    data: Data = None,
    threads: Threads = 0,
    batch: Batch = 1,
    rounds: Rounds = 5,
    seconds: Seconds = 0.5,
    as_json: AsJson = False,
) -> None:
    """Measure artefacts beside torch, ONNX Runtime and OpenVINO as they come, with what they were pruned from.

    Everything runs on the CPU. Default: all artefacts but controls. Adds rows to output/bench/compare.jsonl and writes
    compare.md beside it.
    """
    from bench.peers import compare as measure
    from bench.peers import families
    from bench.pictures import labelled, named
    from zoo.datasets.unlabelled import open_images

    if images and accuracy:
        raise UsageError("--images are pictures without labels, --accuracy wants labels; give one of them")
    config = _config(peers, threads, batch, rounds, seconds)
    unlabelled = named(images) if images else None
    rows = []
    for family in families(artefacts or _all_models()):
        dataset = _dataset(family[0].folder / GRAPH, data, needed=accuracy)
        samples = open_images(calibrate) if calibrate else list(dataset.splits["train"]) if dataset else []
        # As compress.quantize chooses its own, so that all calibrate with the same images.
        random.Random(0).shuffle(samples)
        pictures = labelled(dataset, "validation") if accuracy else unlabelled
        rows += measure(family, config, calibration=samples[:calibration_images], pictures=pictures)
    given: dict[str, Any] = {"--peers": peers, "--calibrate": calibrate, "--calibration-images": calibration_images}
    given |= {"--accuracy": accuracy, "--images": images, "--data": data}
    _show(rows, _command(["bench", "compare", *map(str, artefacts or [])], given | _pace(config)), as_json)


@bench.command()
def shapes(
    models: Annotated[list[str], typer.Argument(help="Architectures: resnet18, or any timm name.")],
    macs: Annotated[float, typer.Option(help="Share of the multiply-accumulates that pruning leaves.")] = 0.45,
    round_to: Annotated[int, typer.Option(help="Widths stay multiples of this many channels.")] = 8,
    size: Annotated[int, typer.Option(help="Edge of the input in pixels; 0: what the network was made for.")] = 0,
    classes: Annotated[int, typer.Option(help="Number of labels.")] = 37,
    peers: Peers = None,
    threads: Threads = 0,
    batch: Batch = 1,
    rounds: Rounds = 5,
    seconds: Seconds = 0.5,
    as_json: AsJson = False,
) -> None:
    """Measure the speed of architectures with random weights: whole, pruned, INT8 and both, beside the peers.

    Nothing is kept but the rows in output/bench/compare.jsonl and the tables in shapes.md beside it.
    """
    import tempfile

    from bench.peers import compare as measure
    from bench.peers import families
    from bench.shapes import ShapesConfig, make_artefacts, noise

    config = _config(peers, threads, batch, rounds, seconds)
    wanted = ShapesConfig(macs=macs, round_to=round_to, size=size, classes=classes)
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="pocketzoo-shapes-") as scratch:
            (family,) = families(make_artefacts(model, Path(scratch), wanted))
            rows += measure(family, config, calibration=noise(wanted.images, family[0].card.use.input.size[0]))
    given = {"--macs": macs, "--round-to": round_to, "--size": size or None, "--classes": classes, "--peers": peers}
    _show(rows, _command(["bench", "shapes", *models], given | _pace(config)), as_json, page="shapes.md")


def _config(peers: str | None, threads: int, batch: int, rounds: int, seconds: float) -> Any:
    from bench.peers import CompareConfig
    from zoo.latency import LatencyConfig

    names = tuple(name.strip() for name in peers.split(",") if name.strip()) if peers else ()
    latency = LatencyConfig(threads=threads, batch=batch, rounds=rounds, seconds=seconds)
    return CompareConfig(peers=names, latency=latency)


def _pace(config: Any) -> dict[str, Any]:
    latency = config.latency
    pace = {"--threads": latency.threads or None, "--batch": latency.batch}
    return pace | {"--rounds": latency.rounds, "--seconds": latency.seconds}


def _command(words: list[str], options: dict[str, Any]) -> str:
    """What was typed, with the defaults that matter.

    A flag is given by true, repeated for each value of a list, and left out by false or None.
    """
    given = [
        part
        for flag, values in options.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None and value is not False
        for part in ([flag] if value is True else [flag, str(value)])
    ]
    return shlex.join(["pocketzoo", *words, *given])


def _all_models() -> list[Path]:
    """Every exported artefact but the controls."""
    from bench.table import graphs
    from zoo.workspace import card_if_readable, read_notes

    folders = dict.fromkeys(path.parent for path in graphs(output_root()))
    notes = {folder: card_if_readable(read_notes, folder) for folder in folders}
    found = [folder for folder, known in notes.items() if known is None or known.role == "model"]
    if not found:
        raise ArtefactError(f"no exported artefacts under {output_root()}; run `make train compress export`")
    return found


def _dataset(path: Path, data: str | None, *, needed: bool) -> Any:
    """The data set of an artefact; None where it is not known and not needed."""
    from zoo.graph import read_card

    try:
        return notes_of(path, data).data.open_for(read_card(path))
    except ArtefactError:
        if needed:
            raise
        return None


def _show(rows: list[dict[str, Any]], command: str, as_json: bool, *, page: str = "compare.md") -> None:
    from bench.peers_text import markdown, tables
    from bench.rows import COMPARE, append

    folder = output_root() / "bench"
    append(folder / COMPARE, rows)
    write_bytes(folder / page, markdown(rows, command).encode())
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    for table in tables(rows):
        console().print(table)
        print()
    print(folder / page)
