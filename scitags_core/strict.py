"""Configuration to typed values: unknown keys are refused, with the nearest known one."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from scitags_core.errors import ConfigError

T = TypeVar("T")
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*?)`")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError with file, and line where it is malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def convert(values: Mapping[str, Any], to: type[T], where: str) -> T:
    """The values as the given msgspec type (with forbid_unknown_fields). ConfigError names key and place."""
    try:
        return msgspec.convert(values, to)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explained(str(error), to)}") from None


def nearest(name: str, known: list[str]) -> str:
    """What to append to an error about an unknown name: '; did you mean ...?' or all the known ones."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _explained(message: str, to: type[Any]) -> str:
    found = _UNKNOWN_FIELD.search(message)
    if not found:
        return message
    name = found["name"]
    place = message[found.end() :].replace(" - at `$", " in `").replace("`.", "`")
    return f"unknown key {name!r}{place}{nearest(name, sorted(_field_names(msgspec.inspect.type_info(to))))}"


def _field_names(info: msgspec.inspect.Type) -> set[str]:
    """Every key that a type and the types inside it know."""
    names: set[str] = set()
    if isinstance(info, msgspec.inspect.StructType):
        for field in info.fields:
            names |= {field.encode_name} | _field_names(field.type)
    elif isinstance(info, msgspec.inspect.UnionType):
        for member in info.types:
            names |= _field_names(member)
    elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        names |= _field_names(info.item_type)
    elif isinstance(info, msgspec.inspect.DictType):
        names |= _field_names(info.value_type)
    return names
