"""Plain JSON or TOML values to frozen dataclasses, strictly: the one reader of cards, recipes and run files."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from zoo.base.errors import unknown_name

__all__ = ["DocumentError", "to_dataclass"]

T = TypeVar("T")


class DocumentError(ValueError):
    """A value that does not fit; the message starts with its place in the document."""


def to_dataclass(kind: type[T], value: Any, where: str) -> T:
    """Read `value` as an instance of the dataclass `kind`.

    Fields may be annotated with other dataclasses, str, int, float, bool, Any, `X | None`, `X | Y`, `tuple[X, ...]`,
    `tuple[X, Y]` and `Mapping[str, X]`. Nothing is converted but a whole number to a float and a list to a tuple.

    Args:
        kind: a dataclass.
        value: what json.loads or tomllib.loads returned.
        where: the name of the document's root, for messages.

    Raises:
        DecodeError: an unknown key (with close matches), a missing key, or a value of another type.
    """
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    if origin is types.UnionType:
        if value is None:
            return None
        return _decode_either([part for part in parts if part is not type(None)], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return _decode_tuple(parts, value, where)
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(parts[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return _to_float(value, where)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = getattr(origin or kind, "__name__", str(kind))
    raise DocumentError(f"{where}: expected {name}, got {value!r:.80}")


def _decode_either(kinds: list[Any], value: Any, where: str) -> Any:
    """As the last of some kinds, unless an earlier one fits."""
    for kind in kinds[:-1]:
        with contextlib.suppress(DocumentError):
            return _decode(kind, value, where)
    if len(kinds) > 1 and not isinstance(value, list | tuple | dict):
        names = " or ".join(getattr(typing.get_origin(kind) or kind, "__name__", str(kind)) for kind in kinds)
        raise DocumentError(f"{where}: expected {names}, got {value!r:.80}")
    return _decode(kinds[-1], value, where)


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise DocumentError(f"{where}: expected float, got a whole number too large for one") from None


def _decode_tuple(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if parts[-1] is not Ellipsis and len(parts) != len(value):
        raise DocumentError(f"{where}: expected {len(parts)} values, got {len(value)}")
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
    return tuple(
        _decode(kind, entry, f"{where}[{index}]") for index, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DocumentError(f"{where}: expected a table of keys, got {value!r:.80}")
    hints = typing.get_type_hints(kind)
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise DocumentError(f"{where}: {unknown_name('key', str(unknown[0]), fields)}")
    for name, entry in fields.items():
        optional = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if name not in value and not optional:
            raise DocumentError(f"{where}: key {name!r} is missing")
    return kind(**{key: _decode(hints[key], entry, f"{where}.{key}") for key, entry in value.items()})
