"""The command line: the composition root, and the only module that may import every package (lazily)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from zoo.errors import ArtefactError, ImageError, PocketzooError, UsageError
from zoo.files import CHECKPOINT, UNMERGED, checkpoint_path, graph_paths, output_root
from zoo.progress import note

__all__ = ["app", "main"]

app = typer.Typer(
    help="Fine-tune image classifiers, make them small and fast, serve them, and prove it with numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
bench = typer.Typer(help="Measure artefacts: test accuracy and latency.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Artefact = Annotated[Path, typer.Argument(help="Folder or file of an artefact, like output/vit-lora.")]
Artefacts = Annotated[list[Path] | None, typer.Argument(help="Folders of artefacts, like output/vit-lora.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="Name in zoo/recipes, or path of a TOML file.")]
MaybeRecipe = Annotated[
    str | None, typer.Option("--recipe", help="Everything that this recipe makes, instead of naming artefacts.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Folder of images, or an embedded data set (mnist5k, digits).")
]
Model = Annotated[str | None, typer.Option("--model", help="Architecture: lenet, or any timm name.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="First weights: none, pretrained, or a state-dict file.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: train.lr=0.001. Repeatable.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this run of the recipe. Repeatable.")]
Force = Annotated[bool, typer.Option("--force", help="Do it even if the result is up to date.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


_INTERRUPTED = 130


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage."""
    try:
        app()
    except UsageError as error:
        sys.exit(_complain(error, 2))
    except PocketzooError as error:
        sys.exit(_complain(error, 1))
    except ModuleNotFoundError as error:
        if error.name not in {
            "torch",
            "timm",
            "torch_pruning",
            "mlxtend",
            "sklearn",
            "scipy",
            "onnxscript",
            "safetensors",
        }:
            raise
        sys.exit(_complain(ArtefactError(f"{error.name} is not installed; pip install 'pocketzoo[train]'"), 1))
    except SystemExit as stop:
        # What typer makes of Ctrl-C, without a word.
        if stop.code == _INTERRUPTED:
            sys.exit(_complain(ArtefactError("interrupted; the same command continues where it stopped"), 1))
        raise


@app.command()
def train(
    recipe: RecipeName = "quickstart",
    data: Data = None,
    model: Model = None,
    weights: Weights = None,
    settings: Settings = None,
    only: Only = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train the checkpoints of a recipe: output/NAME/model.safetensors."""
    from zoo.checkpoint import read_card
    from zoo.train import train as stage
    from zoo.validate import write_state_dicts

    chosen = _runs(recipe, data, model, weights, settings, only)
    paths = [stage(run, output_root(), resume=resume, force=force) for run in chosen]
    # A recipe without both kinds of fine-tuned ViT leaves nothing for validators to load.
    with contextlib.suppress(ArtefactError):
        write_state_dicts(output_root())
    _report([read_card(path) for path in paths], paths, as_json)


@app.command()
def merge(artefact: Artefact, data: Data = None, force: Force = False, as_json: AsJson = False) -> None:
    """Merge the LoRA adapters of lora.safetensors into model.safetensors."""
    from zoo.checkpoint import read_card
    from zoo.train import merge as stage

    source = artefact / UNMERGED if artefact.is_dir() else artefact
    if not source.is_file():
        raise ArtefactError(f"no unmerged checkpoint at {source}; a recipe with `lora` writes one")
    dataset = _notes(source, data).data.open_for(read_card(source))
    path = stage(source, source.with_name(CHECKPOINT), dataset, force=force)
    _report([read_card(path)], [path], as_json)


@app.command()
def compress(
    recipe: RecipeName = "quickstart",
    data: Data = None,
    model: Model = None,
    settings: Settings = None,
    only: Only = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune, recalibrate and recover what a recipe trained: output/NAME-pruned/model.safetensors."""
    from compress.chain import compress_run
    from zoo.checkpoint import read_card

    chosen = [run for run in _runs(recipe, data, model, None, settings, only) if run.role == "model"]
    if not chosen:
        raise UsageError("nothing to compress: the chosen runs are controls, which stay as they are")
    paths = [compress_run(run, output_root(), resume=resume, force=force) for run in chosen]
    _report([read_card(path) for path in paths], paths, as_json)


@app.command()
def prune(
    artefact: Artefact,
    out: Annotated[Path, typer.Option("--out", help="Folder of the new artefact.")],
    macs: Annotated[float, typer.Option(help="Largest share of the multiply-accumulates that stays, in (0, 1).")] = 0.5,
    importance: Annotated[str, typer.Option(help="l1, l2 or random.")] = "l2",
    round_to: Annotated[int, typer.Option(help="Widths stay multiples of this many channels.")] = 8,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--plan", help="Only print what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove channels, heads and hidden units from a checkpoint."""
    from compress.prune import plan
    from compress.prune import prune as stage
    from zoo.card import allow
    from zoo.checkpoint import load, read_card
    from zoo.recipe import PruneConfig
    from zoo.workspace import write_notes

    config = PruneConfig(macs=macs, importance=importance, round_to=round_to)
    source = checkpoint_path(artefact)
    if dry_run:
        network, card = load(source)
        done = plan(network, card.use.input, config)
    else:
        allow(read_card(source), "prune")
        if (out / CHECKPOINT).resolve() == source.resolve():
            raise UsageError(f"--out {out} is the artefact itself; name another folder")
        notes = _notes(source, data)
        done = stage(source, out / CHECKPOINT, config, dataset=notes.data.open_for(read_card(source)), name=out.name)
        write_notes(out, notes)
    if as_json:
        print(json.dumps(dataclasses.asdict(done) | {"ratio": done.ratio}))
        return
    for step in done.steps:
        print(f"{step.layer}: {step.before} -> {step.after} {step.unit}s")
    print(
        f"{done.macs_before / 1e6:.2f} -> {done.macs_after / 1e6:.2f} million multiply-accumulates ({done.ratio:.0%})"
    )


@app.command()
def recalibrate(
    artefact: Artefact,
    images: Annotated[int, typer.Option(help="At most so many training images.")] = 1024,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Measure the BatchNorm statistics of a checkpoint anew, in its own folder."""
    from compress.recalibrate import recalibrate as stage
    from zoo.checkpoint import read_card
    from zoo.recipe import RecalibrateConfig

    source = checkpoint_path(artefact)
    done = stage(
        source, source, RecalibrateConfig(images=images), dataset=_notes(source, data).data.open_for(read_card(source))
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(
        f"{done.layers} layers, {done.images} images: validation top-1 {done.top1_before:.2%} -> {done.top1_after:.2%}"
    )


@app.command()
def recover(
    artefact: Artefact,
    teacher: Annotated[Path, typer.Option("--teacher", help="The unpruned artefact.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    data: Data = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pruned checkpoint with its unpruned parent as teacher, in its own folder."""
    from compress.recover import recover as stage
    from zoo.checkpoint import read_card
    from zoo.fit import FitConfig
    from zoo.recipe import RecoverConfig

    source = checkpoint_path(artefact)
    config = RecoverConfig(fit=FitConfig(epochs=epochs, lr=lr))
    dataset = _notes(source, data).data.open_for(read_card(source))
    done = stage(source, checkpoint_path(teacher), source, config, dataset=dataset, resume=resume)
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(f"best validation top-1 {done.validation_top1:.2%} in epoch {done.best_epoch} of {done.epochs}")


@app.command()
def export(
    artefacts: Artefacts = None,
    recipe: MaybeRecipe = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize each ONNX file as well.")] = False,
    data: Data = None,
    model: Model = None,
    settings: Settings = None,
    only: Only = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Export checkpoints to model.onnx beside them, after proving that both compute the same."""
    from compress.chain import PRUNED, export_artefact, quantize_artefact
    from zoo.graph import read_card
    from zoo.recipe import QuantizeConfig

    jobs = [(folder, QuantizeConfig()) for folder in artefacts or []]
    source = _source(data) if artefacts else None
    if recipe:
        for run in _runs(recipe, data, model, None, settings, only):
            names = (run.artefact, run.artefact + PRUNED)
            jobs += [
                (output_root() / name, run.quantize) for name in names if (output_root() / name / CHECKPOINT).is_file()
            ]
    if not jobs:
        raise UsageError("name at least one artefact to export, or a --recipe whose artefacts were trained")
    paths = []
    for folder, config in jobs:
        paths.append(export_artefact(folder, data=source, force=force))
        if int8:
            paths.append(quantize_artefact(folder, config, data=source, force=force))
    _report([read_card(path) for path in paths], paths, as_json)


@app.command()
def quantize(
    artefacts: Annotated[list[Path], typer.Argument(help="Folders with a model.onnx, like output/vit-lora.")],
    images: Annotated[int, typer.Option(help="Calibration images, from the training split.")] = 256,
    calibration: Annotated[str, typer.Option(help="minmax, entropy or percentile.")] = "minmax",
    data: Data = None,
    target: Annotated[
        str, typer.Option(help="Instruction set: portable, vnni, arm or auto (this machine's).")
    ] = "portable",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantize model.onnx to model.int8.onnx beside it."""
    from compress.chain import quantize_artefact
    from zoo.graph import read_card
    from zoo.recipe import QuantizeConfig

    config = QuantizeConfig(images=images, calibration=calibration, target=target)
    source = _source(data)
    paths = [quantize_artefact(folder, config, data=source, force=force) for folder in artefacts]
    _report([read_card(path) for path in paths], paths, as_json)


@app.command()
def evaluate(
    artefact: Artefact,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of an artefact's ONNX files on a data set."""
    from bench.accuracy import measure_accuracy

    paths = graph_paths(artefact)
    source = _notes(paths[0], data).data
    for path in paths:
        row = measure_accuracy(path, source.open(), split=split)
        text = _accuracy_text(row)
        print(json.dumps(row) if as_json else text)


@app.command()
def predict(
    artefact: Artefact,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(help="Labels per image.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Classify image files; a folder's INT8 file answers where there is one."""
    from zoo.predictor import Predictor

    predictor = Predictor(graph_paths(artefact)[-1])
    for image in images:
        try:
            data = image.read_bytes()
        except OSError as error:
            raise ArtefactError(f"{image}: cannot be read: {error}") from error
        try:
            (answer,) = predictor.predict([data], top=top)
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from error
        pairs = list(zip(answer.labels, answer.probabilities, strict=True))
        if as_json:
            print(
                json.dumps({"image": str(image), "labels": [{"label": label, "probability": p} for label, p in pairs]})
            )
        else:
            print(f"{image}: " + ", ".join(f"{label} {p:.1%}" for label, p in pairs))


@app.command()
def show(artefact: Artefact) -> None:
    """Print the card of an artefact (a checkpoint or an ONNX file) as JSON."""
    path = artefact / CHECKPOINT if artefact.is_dir() and (artefact / CHECKPOINT).is_file() else artefact
    if path.suffix == ".safetensors":
        from zoo.checkpoint import read_card
    else:
        from zoo.graph import read_card

        path = graph_paths(path)[0]
    print(json.dumps(dataclasses.asdict(read_card(path)), indent=2, sort_keys=True))


@app.command(name="list")
def list_artefacts(as_json: AsJson = False) -> None:
    """Print the table of all exported artefacts with what was measured."""
    from bench.table import collect, render

    lines = collect(output_root())
    if not lines:
        raise ArtefactError(f"no exported artefacts under {output_root()}; run `make train compress export`")
    if as_json:
        for line in lines:
            print(
                json.dumps(
                    {"artefact": line.name, "role": line.role, "accuracy": line.accuracy, "latency": line.latency}
                )
            )
        return
    _console().print(render(lines))


@bench.command()
def latency(
    artefacts: Artefacts = None,
    batch: Annotated[int, typer.Option(help="Images per inference.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads per inference; 0: all cores.")] = 0,
    rounds: Annotated[int, typer.Option(help="Processes per artefact; they take turns.")] = 5,
    seconds: Annotated[float, typer.Option(help="Measured time per process.")] = 0.3,
    missing: Annotated[bool, typer.Option("--missing", help="Only if an artefact was not measured yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure latency: alternating processes, one session alive at a time. Default: all artefacts."""
    from bench.latency import LatencyConfig, measure_latency
    from bench.rows import LATENCY, append
    from bench.table import graphs, unmeasured

    paths = [path for artefact in artefacts for path in graph_paths(artefact)] if artefacts else graphs(output_root())
    paths = unmeasured(output_root())[1] if missing else paths
    rows = (
        measure_latency(paths, LatencyConfig(batch=batch, threads=threads, rounds=rounds, seconds=seconds))
        if paths
        else []
    )
    append(output_root() / "bench" / LATENCY, rows)
    for row in rows:
        times = ", ".join(f"{key[:3]} {row[key]:.3f} ms" for key in ("p50_ms", "p95_ms", "p99_ms"))
        text = f"{row['artefact']}/{row['file']}: {times}, n = {row['n']}"
        print(json.dumps(row) if as_json else text)


@bench.command(name="accuracy")
def bench_accuracy(
    artefacts: Artefacts = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only artefacts that were not measured yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy on each artefact's test data. Default: all artefacts."""
    from bench.accuracy import measure_accuracy
    from bench.rows import ACCURACY, append
    from bench.table import graphs, unmeasured
    from zoo.graph import read_card
    from zoo.workspace import read_notes

    paths = [path for artefact in artefacts for path in graph_paths(artefact)] if artefacts else graphs(output_root())
    for path in unmeasured(output_root())[0] if missing else paths:
        row = measure_accuracy(path, read_notes(path.parent).test.open_for(read_card(path)))
        append(output_root() / "bench" / ACCURACY, [row])
        text = _accuracy_text(row)
        print(json.dumps(row) if as_json else text)


def _runs(
    recipe: str,
    data: str | None,
    model: str | None,
    weights: str | None,
    settings: list[str] | None,
    only: list[str] | None,
) -> list[Any]:
    from zoo.errors import unknown_name
    from zoo.recipe import load_recipe

    runs = load_recipe(recipe, data=data, model=model, weights=weights, settings=settings or ()).run
    for name in only or ():
        if name not in [run.artefact for run in runs]:
            raise unknown_name("run", name, [run.artefact for run in runs])
    return [run for run in runs if not only or run.artefact in only]


def _source(data: str | None) -> Any:
    """The data set named on the command line, if any."""
    from zoo.workspace import DataSource

    # A relative path means something else in another working directory.
    return DataSource(name=str(Path(data).resolve()) if Path(data).is_dir() else data) if data else None


def _notes(artefact: Path, data: str | None) -> Any:
    """What is known of an artefact's data: the data set named on the command line, else its folder's run.json."""
    from zoo.workspace import Notes, read_notes

    source = _source(data)
    return Notes(role="model", data=source, test=source) if source else read_notes(artefact.parent)


def _report(cards: list[Any], paths: list[Path], as_json: bool) -> None:
    """One line per artefact: what it is and how it does on validation data."""
    for card, path in zip(cards, paths, strict=True):
        metrics = card.metrics("validation")
        if as_json:
            print(json.dumps({"path": str(path), "card": dataclasses.asdict(card)}))
            continue
        measured = f"validation top-1 {metrics.top1:.2%} (n = {metrics.n})" if metrics else "not measured"
        print(f"{_short(path)}: {measured}, {card.inform.macs / 1e6:.1f} MMACs, {path.stat().st_size / 1e6:.2f} MB")


def _accuracy_text(row: dict[str, Any]) -> str:
    interval = f"{row['low']:.2%} to {row['high']:.2%}"
    return f"{row['artefact']}/{row['file']}: {row['split']} top-1 {row['top1']:.2%} ({interval}), n = {row['n']}"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _console() -> Console:
    # Without a terminal rich assumes 80 columns and would cut the table off.
    return Console(width=None if sys.stdout.isatty() else 140)


def _complain(error: PocketzooError, code: int) -> int:
    note(f"error: {error}")
    return code
