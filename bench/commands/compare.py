"""Commands that measure artefacts and architectures beside what else there is to pick."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.group import bench
from zoo.base.commandline import Artefacts, AsJson, Rounds, Seconds, command_line, console
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import GRAPH, output_root, write_bytes
from zoo.base.progress import note
from zoo.base.size import SIZE_HELP, parse_size
from zoo.commands.image_set import Images
from zoo.commands.runs import Data, notes_of

__all__ = ["compare", "shapes"]

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


@bench.command()
def compare(
    artefacts: Artefacts = None,
    peers: Peers = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="Folder of images for the peers that quantize. Default: training images."),
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="At most so many of them.")] = 256,
    accuracy: Annotated[
        bool | None,
        typer.Option(
            "--accuracy/--no-accuracy",
            help="Measure every variant's accuracy on the validation split, too. Default: where the data is known.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    data: Data = None,
    threads: Threads = 0,
    batch: Batch = 1,
    rounds: Rounds = 6,
    seconds: Seconds = 0.5,
    as_json: AsJson = False,
) -> None:
    """Measure artefacts beside torch, ONNX Runtime and OpenVINO.

    As they come, with what the artefacts were pruned from.
    """
    from bench.runtimes.compare import compare as measure
    from bench.runtimes.families import families
    from zoo.data.folders.unlabelled import open_images
    from zoo.data.image_set import labelled, named

    if images and accuracy:
        raise UsageError("--images are images without labels, --accuracy wants labels; give one of them")
    config = _config(peers, threads, batch, rounds, seconds)
    unlabelled = named(images) if images else None
    rows = []
    for family in families(artefacts or _all_models()):
        dataset = _dataset(family[0].folder / GRAPH, data, needed=bool(accuracy))
        white = family[0].card.use.input.range
        samples = open_images(calibrate, white=white) if calibrate else list(dataset.splits["train"]) if dataset else []
        # As compress.quantize.stage chooses its own, so that all calibrate with the same images.
        random.Random(0).shuffle(samples)
        asked = unlabelled is None and dataset is not None and accuracy is not False
        if asked and accuracy is None and "validation" not in dataset.splits:
            note(f"{family[0].card.name}: accuracy is left out, as it was trained on the validation images, too")
            asked = False
        pictures = labelled(dataset, "validation") if asked else unlabelled
        rows += measure(family, config, calibration=samples[:calibration_images], pictures=pictures)
    given: dict[str, Any] = {"--peers": peers, "--calibrate": calibrate, "--calibration-images": calibration_images}
    given |= {"--accuracy": accuracy, "--no-accuracy": accuracy is False, "--images": images, "--data": data}
    _show(rows, command_line(["bench", "compare", *map(str, artefacts or [])], given | _pace(config)), as_json)


@bench.command()
def shapes(
    models: Annotated[list[str], typer.Argument(help="Architectures: resnet18, or any timm name.")],
    macs: Annotated[float, typer.Option(help="Share of the multiply-accumulates that pruning leaves.")] = 0.45,
    round_to: Annotated[int, typer.Option(help="Widths stay multiples of this many channels.")] = 8,
    size: Annotated[str | None, typer.Option(help=f"{SIZE_HELP}; default: what the network was made for.")] = None,
    classes: Annotated[int, typer.Option(help="Number of labels.")] = 37,
    peers: Peers = None,
    threads: Threads = 0,
    batch: Batch = 1,
    rounds: Rounds = 6,
    seconds: Seconds = 0.5,
    as_json: AsJson = False,
) -> None:
    """Measure architectures with random weights.

    Whole, pruned, INT8 and both, beside other runtimes.
    """
    import tempfile

    from bench.runtimes.compare import compare as measure
    from bench.runtimes.families import families
    from bench.runtimes.random_weights import ShapesConfig, make_artefacts, noise

    config = _config(peers, threads, batch, rounds, seconds)
    # 0 was the default once, and stands in the commands of published rows.
    edges = parse_size(size) if size and size != "0" else None
    wanted = ShapesConfig(macs=macs, round_to=round_to, size=edges, classes=classes)
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="pocketzoo-shapes-") as scratch:
            (family,) = families(make_artefacts(model, Path(scratch), wanted))
            rows += measure(family, config, calibration=noise(wanted.images, family[0].card.use.input.size))
    given = {"--macs": macs, "--round-to": round_to, "--size": size, "--classes": classes, "--peers": peers}
    _show(rows, command_line(["bench", "shapes", *models], given | _pace(config)), as_json, page="shapes.md")


def _config(peers: str | None, threads: int, batch: int, rounds: int, seconds: float) -> Any:
    from bench.runtimes.compare import CompareConfig
    from zoo.artefact.latency import LatencyConfig

    names = tuple(name.strip() for name in peers.split(",") if name.strip()) if peers else ()
    latency = LatencyConfig(threads=threads, batch=batch, rounds=rounds, seconds=seconds)
    config = CompareConfig(peers=names, latency=latency)
    for name, reason in config.absent.items():
        note(f"{name} is left out: {reason}")
    return config


def _pace(config: Any) -> dict[str, Any]:
    latency = config.latency
    pace = {"--threads": latency.threads or None, "--batch": latency.batch}
    return pace | {"--rounds": latency.rounds, "--seconds": latency.seconds}


def _all_models() -> list[Path]:
    """Every exported artefact but the controls."""
    from bench.artefact_table import graphs
    from zoo.training.workspace import card_if_readable, read_notes

    folders = dict.fromkeys(path.parent for path in graphs(output_root()))
    notes = {folder: card_if_readable(read_notes, folder) for folder in folders}
    found = [folder for folder, known in notes.items() if known is None or known.role == "model"]
    if not found:
        raise ArtefactError(f"no exported artefacts under {output_root()}; run `make train compress export`")
    return found


def _dataset(path: Path, data: str | None, *, needed: bool) -> Any:
    """The data set of an artefact; None where it is not known and not needed."""
    from zoo.artefact.onnx_file import read_card

    try:
        return notes_of(path, data).data.open_for(read_card(path))
    except ArtefactError:
        if needed:
            raise
        return None


def _show(rows: list[dict[str, Any]], command: str, as_json: bool, *, page: str = "compare.md") -> None:
    from bench.rows import COMPARE, append
    from bench.runtimes.tables import markdown, tables

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
