"""The command line: the composition root, and the only package that may import every other one (lazily)."""

from __future__ import annotations

import sys

from zoo.base.commandline import app
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.progress import note
from zoo.cli import (
    adapters,
    bench_training,
    compare,
    compression,
    data,
    decoding,
    evaluate,
    explain_answers,
    explain_attention,
    explain_inside,
    explain_summary,
    forgetting,
    imports,
    keys,
    load,
    measure,
    models,
    optimize,
    pruning,
    publish,
    quantization,
    report,
    score,
    search,
    serving,
    ship,
    training,
)

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    adapters,
    bench_training,
    compare,
    compression,
    data,
    decoding,
    evaluate,
    explain_answers,
    explain_attention,
    explain_inside,
    explain_summary,
    forgetting,
    imports,
    keys,
    load,
    measure,
    models,
    optimize,
    pruning,
    publish,
    quantization,
    report,
    score,
    search,
    serving,
    ship,
    training,
)
"""The modules that registered their commands when they were imported."""

_INTERRUPTED = 130
_EXTRAS = {
    **dict.fromkeys(("filelock", "matplotlib", "mlxtend", "onnxscript", "optuna", "safetensors"), "train"),
    **dict.fromkeys(("scipy", "sklearn", "sympy", "timm", "tomli_w", "torch", "torch_pruning", "torchvision"), "train"),
    **dict.fromkeys(("hdrh", "jinja2", "psutil", "pytest", "pytest_benchmark"), "bench"),
    **dict.fromkeys(("openvino", "nncf"), "peers"),
    "captum": "explain",
    "pyarrow": "score",
    "ray": "ray",
}
"""Package -> the extra of pyproject.toml that installs it."""


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage."""
    try:
        app()
    except UsageError as error:
        sys.exit(_complain(error, 2))
    except PocketzooError as error:
        sys.exit(_complain(error, 1))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(_complain(ArtefactError(f"{package} is not installed; pip install '.[{_EXTRAS[package]}]'"), 1))
    except SystemExit as stop:
        # What typer makes of Ctrl-C, without a word.
        if stop.code == _INTERRUPTED:
            sys.exit(_complain(ArtefactError("interrupted; the same command continues where it stopped"), 1))
        raise


def _complain(error: PocketzooError, code: int) -> int:
    note(f"error: {error}")
    return code
