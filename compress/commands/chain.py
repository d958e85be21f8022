"""Commands that make artefacts smaller and faster, and export them."""

from __future__ import annotations

from zoo.base.commandline import COMPRESS, AsJson, Force, Resume, app
from zoo.base.errors import UsageError
from zoo.base.files import output_root
from zoo.commands.runs import Data, Logs, Model, Only, RecipeName, Settings, chosen_runs, report


@app.command(rich_help_panel=COMPRESS)
def compress(
    recipe: RecipeName = None,
    data: Data = None,
    model: Model = None,
    settings: Settings = None,
    only: Only = None,
    log: Logs = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune, recalibrate and recover what a recipe trained.

    Each is written to output/NAME-pruned/model.safetensors.
    """
    from compress.chain import compress_run
    from zoo.networks.checkpoint import read_card
    from zoo.training.loop.logs import check_logs

    check_logs(log or ())
    runs = chosen_runs(recipe, data, model, None, settings, only, made=True, tell=False)
    chosen = [run for run in runs if run.role == "model"]
    if not chosen:
        raise UsageError("nothing to compress: the chosen runs are controls, which stay as they are")
    paths = [compress_run(run, output_root(), resume=resume, force=force, logs=log or ()) for run in chosen]
    report([read_card(path) for path in paths], paths, as_json)
