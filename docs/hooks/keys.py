"""Writes the lists of a recipe's keys, of the card's fields and of the server's settings.

From the dataclasses that define them: names, types, defaults, and the docstring under each field.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from serve.settings import PREFIX, Settings
from zoo.artefact.card import Card
from zoo.training.recipe import Run

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "reference/keys.md": (
        "Keys of a recipe",
        "What a `[[run]]` of a recipe, its `[defaults]` and `--set KEY=VALUE` take. "
        "[Training](../guides/training.md#keys) says which of them answers which wish.",
    ),
    "reference/card.md": (
        "The card",
        "The JSON document that every artefact carries under `zoo.card`: in the header of a safetensors file, and in "
        "the `metadata_props` of an ONNX file. `pocketzoo show ARTEFACT` prints it. The schema's name is "
        f"`{Card.schema}`; another one is refused. "
        "[Leave again](../leaving.md) reads it without pocketzoo.",
    ),
    "reference/settings.md": (
        "Settings of the server",
        f"Environment variables, read when `bentoml serve` starts. A name that is {PREFIX} and nearly one of these is "
        "an error. [The server](../guides/serving.md#settings) explains how they play together.",
    ),
}


@functools.cache
def _module(name: str) -> griffe.Module:
    found = griffe.load(name, search_paths=[str(ROOT)], try_relative_path=False)
    assert isinstance(found, griffe.Module)
    return found


def _class(kind: type) -> griffe.Class:
    found = _module(kind.__module__)[kind.__qualname__]
    assert isinstance(found, griffe.Class)
    return found


def _nested(hint: Any) -> type | None:
    """The dataclass that a field holds: itself, or None, or several of it."""
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part
    return None


def _line(text: str) -> str:
    return " ".join(text.split())


def _entry(name: str, field: dataclasses.Field[Any], attribute: griffe.Attribute, more: str = "") -> str:
    """One item: a list reads well on a telephone, where a table of four columns does not."""
    facts = [f"`{_line(str(attribute.annotation))}`"]
    written = _line(str(attribute.value))
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        facts.append("required")
    elif not written.startswith("field("):
        facts.append(f"default `{written}`")
    meaning = " ".join(filter(None, [_line(attribute.docstring.value) if attribute.docstring else "", more]))
    return f"- **`{name}`** ({', '.join(facts)}){': ' if meaning else ''}{meaning}\n"


def _attribute(described: griffe.Class, name: str) -> griffe.Attribute:
    found = described.members[name]
    assert isinstance(found, griffe.Attribute)
    return found


def _lists(kind: type, prefix: str, names: dict[type, str]) -> Iterator[str]:
    """The fields of this dataclass, then of those that its fields hold; each dataclass once."""
    described, hints = _class(kind), typing.get_type_hints(kind)
    inside, items = [], []
    for field in dataclasses.fields(kind):
        name, more = f"{prefix}{field.name}", ""
        if other := _nested(hints[field.name]):
            if other not in names:
                names[other] = name
                inside.append((other, f"{name}."))
            more = f"See [{names[other]}](#{_anchor(names[other])})."
        items.append(_entry(name, field, _attribute(described, field.name), more))
    title = prefix.rstrip(".")
    heading = f"\n## {title} {{#{_anchor(title)}}}\n" if prefix else ""
    summary = described.docstring.value if described.docstring else ""
    yield f"{heading}\n{summary}\n\n{''.join(items)}"
    for other, longer in inside:
        yield from _lists(other, longer, names)


def _anchor(name: str) -> str:
    return name.replace(".", "-")


def _settings() -> str:
    described = _class(Settings)
    fields = dataclasses.fields(Settings)
    items = [_entry(f"{PREFIX}{each.name.upper()}", each, _attribute(described, each.name)) for each in fields]
    return "\n" + "".join(items)


def pages() -> dict[str, str]:
    """Path -> Markdown."""
    bodies = {
        "reference/keys.md": "".join(_lists(Run, "", {})),
        "reference/card.md": "".join(_lists(Card, "", {})),
        "reference/settings.md": _settings(),
    }
    return {path: f"# {title}\n\n{intro}\n{bodies[path]}" for path, (title, intro) in PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
