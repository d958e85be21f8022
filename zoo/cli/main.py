"""The command line: the composition root, and the only package that may import every other one (lazily)."""

from __future__ import annotations

import sys

from zoo.cli import (
    adapters,
    bench_training,
    compression,
    data,
    decoding,
    evaluate,
    forgetting,
    imports,
    keys,
    load,
    measure,
    models,
    optimize,
    pruning,
    quantization,
    report,
    search,
    ship,
    training,
)
from zoo.cli.app import app
from zoo.errors import ArtefactError, PocketzooError, UsageError
from zoo.progress import note

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    adapters,
    bench_training,
    compression,
    data,
    decoding,
    evaluate,
    forgetting,
    imports,
    keys,
    load,
    measure,
    models,
    optimize,
    pruning,
    quantization,
    report,
    search,
    ship,
    training,
)
"""The modules that registered their commands when they were imported."""

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
            "filelock",
            "matplotlib",
            "optuna",
            "torch",
            "timm",
            "tomli_w",
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


def _complain(error: PocketzooError, code: int) -> int:
    note(f"error: {error}")
    return code
