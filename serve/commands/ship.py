"""The command that writes what an image of the server is built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import SERVE, AsJson, app, short

__all__ = ["ship"]


@app.command(rich_help_panel=SERVE)
def ship(
    out: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an earlier shipment.")],
    artefacts: Annotated[
        list[Path] | None, typer.Argument(help="Folders or ONNX files; default: all that the server serves.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the objects in the cluster, and of the bento.")] = "pocketzoo",
    image: Annotated[
        str | None, typer.Option(help="registry/path:tag; default: the name, and a tag drawn from the contents.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="The least number of pods; up to four times as many under load.")] = 2,
    cores: Annotated[int, typer.Option(help="The most processor cores of a container; half of them are reserved.")] = 2,
    engine: Annotated[
        str,
        typer.Option(
            help="What computes: onnxruntime, openvino, or auto: both, if the models have golden answers of it."
        ),
    ] = "onnxruntime",
    hashes: Annotated[
        bool, typer.Option("--hashes/--no-hashes", help="Whether requirements.txt has the SHA-256 of every wheel.")
    ] = True,
    keys_file: Annotated[
        Path | None, typer.Option("--keys-file", help="API keys of `pocketzoo key`, for a Secret of the cluster.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder to build a container image or bento from.

    With models, sources, requirements (versions and hashes), Kubernetes manifests, and a README that says what it is
    large by and how to roll back. The memory limit follows from the models: they are loaded here, and measured.
    """
    from serve.shipping.plan import plan_shipment, write_shipment
    from serve.shipping.sizes import told
    from zoo.base.files import output_root
    from zoo.base.progress import note

    shipment = plan_shipment(
        artefacts or (),
        root=output_root(),
        name=name,
        image=image,
        replicas=replicas,
        cores=cores,
        engine=engine,
        hashes=hashes,
        keys_file=keys_file,
    )
    write_shipment(shipment, out)
    for sentence in shipment.left_out:
        note(f"left out: {sentence}")
    if as_json:
        models = [model.target for model in shipment.models]
        size, memory = shipment.sizes, shipment.memory
        found = {
            "path": str(out),
            "name": name,
            "image": shipment.image,
            "models": models,
            "engine": shipment.engine,
            "bytes": {"models": size.models, "packages": size.packages, "image": size.image},
            "memory_bytes": {"worker": memory.worker, "request": memory.request, "limit": memory.limit},
        }
        print(json.dumps(found))
        return
    print(f"{short(out)}: {len(shipment.models)} models; image {shipment.image}")
    for line in told(shipment.sizes, shipment.memory, len(shipment.models), shipment.engine):
        print(line)
    note(f"cd {out} && docker build -f Containerfile -t {shipment.image} .")
