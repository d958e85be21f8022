"""ONNX files and their cards: read, check, stamp, strip. Reading executes nothing and follows no external file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from zoo.artefact.card import KEY, Card, from_json, to_json
from zoo.base.errors import ArtefactError, CardError, CheckError
from zoo.base.files import write_bytes

__all__ = ["check_agreement", "digest", "load", "read_card", "signature", "stamp", "strip_traces", "write"]


def load(path: Path) -> tuple[ModelProto, Card]:
    """Read an ONNX file and its card, and check that they agree.

    Raises:
        ArtefactError: not an ONNX file, or one that keeps its weights in other files.
        CardError: no card, or a card that contradicts the graph.
        CheckError: the network is not the one that the card was written with.
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except FileNotFoundError:
        raise ArtefactError(f"no ONNX file at {path}; `pocketzoo export` writes one") from None
    except (DecodeError, ValueError, OSError) as error:
        raise ArtefactError(
            f"{path}: not a readable ONNX file ({error}); write it again with `pocketzoo export`"
        ) from error
    if not model.graph.output:
        raise ArtefactError(f"{path}: not an ONNX model: it has no graph")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise ArtefactError(f"{path}: keeps its weights in another file; artefacts are single files, export it again")
    values = {entry.key: entry.value for entry in model.metadata_props}
    card = from_json(values.get(KEY), where=str(path))
    _check_agreement(model, card, where=str(path))
    if card.inform.graph is not None and digest(model) != card.inform.graph:
        raise CheckError(
            f"{path}: its network is not the one that its card was written with (SHA-256); "
            "the file was damaged or changed, write it again with `pocketzoo export`"
        )
    return model, card


def digest(model: ModelProto) -> str:
    """SHA-256 of what a model computes: opsets, inputs, outputs, nodes and weights; hexadecimal.

    Each part is hashed by itself, so that a large model is not copied.
    """
    found = hashlib.sha256()
    graph = model.graph
    for parts in (model.opset_import, model.functions, graph.input, graph.output, graph.node, graph.initializer):
        found.update(len(parts).to_bytes(8, "little"))
        for part in parts:
            content = part.SerializeToString(deterministic=True)
            found.update(len(content).to_bytes(8, "little"))
            found.update(content)
    return found.hexdigest()


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers and constants, in subgraphs and functions too."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                graphs.extend([attribute.g, *attribute.graphs])


def read_card(path: Path) -> Card:
    """The card of an ONNX file; the same errors as :func:`load`."""
    return load(path)[1]


def signature(model: ModelProto) -> tuple[dict[str, list[int | None]], dict[str, list[int | None]]]:
    """Inputs and outputs of a graph: name -> shape, None where a dimension is symbolic."""
    stored = {tensor.name for tensor in model.graph.initializer}

    def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[int | None]]:
        return {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            ]
            for value in values
            if value.name not in stored
        }

    return shapes(list(model.graph.input)), shapes(list(model.graph.output))


def check_agreement(
    card: Card, inputs: dict[str, list[int | None]], outputs: dict[str, list[int | None]], *, where: str
) -> None:
    """Check that the graph takes what the card promises and answers one logit per label.

    Args:
        card: the card.
        inputs: name -> shape of the graph's inputs; None for a symbolic dimension.
        outputs: the same of its outputs.
        where: the file, for errors.

    Raises:
        CardError: names, shapes or the number of labels differ.
    """
    want_in = {card.use.input.name: [None, *card.use.input.shape]}
    want_out = {card.use.output.name: [None, len(card.use.labels)]}
    if inputs != want_in:
        raise CardError(f"{where}: the card says the input is {want_in}, the graph has {inputs}; export it again")
    if outputs != want_out:
        raise CardError(
            f"{where}: the card has {len(card.use.labels)} labels, so the output should be {want_out}; "
            f"the graph has {outputs}; export it again"
        )


def _check_agreement(model: ModelProto, card: Card, *, where: str) -> None:
    check_agreement(card, *signature(model), where=where)
    for value in model.graph.input:
        if value.name == card.use.input.name and value.type.tensor_type.elem_type != TensorProto.FLOAT:
            found = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
            raise CardError(f"{where}: the card says the input is float32, the graph has {found}; export it again")


def stamp(model: ModelProto, card: Card) -> ModelProto:
    """Put `card` into the model's metadata, beside whatever other keys are there, and return the model.

    Raises:
        CardError: the card contradicts the graph, or is not JSON.
    """
    _check_agreement(model, card, where=card.name)
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    values = {entry.key: entry.value for entry in kept} | {KEY: to_json(card)}
    del model.metadata_props[:]
    for key, value in sorted(values.items()):
        model.metadata_props.add(key=key, value=value)
    return model


def strip_traces(model: ModelProto) -> ModelProto:
    """Remove what the exporter leaves behind of the machine it ran on, and return the model.

    torch's exporter writes stack traces with absolute source paths into every node; documentation strings and the
    shapes of intermediate values go too (quantizers trip over stale ones, and they are inferred again anyway).
    """
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.functions[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    return model


def write(model: ModelProto, card: Card, path: Path) -> Card:
    """Stamp the card, check the model and write it atomically.

    Returns:
        The card as written.

    Raises:
        CardError: the card contradicts the graph.
        ArtefactError: the model is not valid ONNX.
    """
    weights = sum(_tensor_bytes(tensor) for tensor in model.graph.initializer)
    card = dataclasses.replace(
        card,
        inform=dataclasses.replace(
            card.inform, bytes=weights, opset=max(o.version for o in model.opset_import), graph=digest(model)
        ),
    )
    content = stamp(model, card).SerializeToString(deterministic=True)
    try:
        # Of a model it would make these bytes once more.
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        raise ArtefactError(f"{path}: the graph is not valid ONNX: {' '.join(str(error).split())}") from error
    write_bytes(path, content)
    return card


def _tensor_bytes(tensor: TensorProto) -> int:
    return int(onnx.numpy_helper.to_array(tensor).nbytes)
