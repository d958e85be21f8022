"""Settings as they are typed: `train.lr=0.001` is a place in nested tables and a TOML value."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from zoo.base.errors import UsageError

__all__ = ["merge", "nested", "parse_setting", "parse_value"]


def parse_setting(text: str) -> tuple[str, Any]:
    """The dotted key and the value of "key=value".

    Raises:
        UsageError: there is no "=", or a part of the key is no name.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
        raise UsageError(f"--set expects KEY=VALUE like train.lr=0.001, got {text!r}")
    return key.strip(), parse_value(value)


def parse_value(text: str) -> Any:
    """A value written as TOML; what is not is a text without quotation marks."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nested(key: str, value: Any) -> dict[str, Any]:
    """The tables that a dotted key and its value are."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def merge(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables united; later ones win."""
    merged: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
