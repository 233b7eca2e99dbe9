"""A configuration of ours in the making, with what could not be carried over. Pure."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from scitags_core.errors import ConfigError

_LINE = 112
# Of a firefly with all that the kernel knows of its connection, which is more than goes into an unfragmented datagram.
MAX_OCTETS_FULL = 4096


class Table(msgspec.Struct):
    """One table: "log" or a list's "source", what it says, and a line of comment that says why it is there."""

    name: str
    keys: dict[str, Any]
    why: str = ""
    is_one_of_many: bool = True


class Draft:
    """What an importer fills: tables for the agent, and remarks, in the order of the file that is read.

    lacking    settings without an equivalent, each with its value and what that means
    notes      what is different from what the administrator is used to
    """

    def __init__(self, daemon: str) -> None:
        self.daemon = daemon
        self.tables: list[Table] = []
        self.lacking: list[str] = []
        self.notes: list[str] = []

    def source(self, kind: str, why: str = "", **keys: Any) -> None:
        """Add a [[source]]."""
        self.tables.append(Table("source", {"kind": kind, **keys}, why))

    def firefly_source(self, host: str, port: int, setting: str) -> None:
        """Add the source of fireflies that listens there; setting names what asks for it."""
        keys: dict[str, Any] = {"listen": [endpoint(host or "::", port)]}
        if host == "localhost" or is_loopback(host):
            self.source("firefly", **keys)
            return
        why = f"As {self.daemon}'s: whoever can reach this host may send. List the storages' networks instead."
        self.source("firefly", why, **keys, allow=["0.0.0.0/0", "::/0"])
        self.note(
            f"{setting}: of fireflies whose flow has no end at this host nothing is done, unless only_local = false"
        )

    def enricher(self, kind: str, why: str = "", **keys: Any) -> None:
        """Add an [[enricher]]."""
        self.tables.append(Table("enricher", {"kind": kind, **keys}, why))

    def backend(self, kind: str, why: str = "", **keys: Any) -> None:
        """Add a [[backend]]."""
        self.tables.append(Table("backend", {"kind": kind, **keys}, why))

    def once(self, name: str, why: str = "", **keys: Any) -> None:
        """Add a table that is there once."""
        self.tables.append(Table(name, keys, why, is_one_of_many=False))

    def lack(self, setting: str, value: Any, meaning: str) -> None:
        """Say that a setting has no equivalent. A value that is not settings but code has none either."""
        self.lacking.append(f"{setting} = {_shown(value)}: {meaning}")

    def note(self, text: str) -> None:
        """Say that something is different."""
        self.notes.append(text)

    def finished(self) -> str:
        """The TOML. Raises ConfigError where nothing would be done about any flow."""
        if not any(table.name == "backend" for table in self.tables):
            raise ConfigError(f"it asks {self.daemon} for no backend: nothing would be done about any flow")
        if not any(table.keys.get("kind") == "unix" for table in self.tables):
            self.source("unix", "For `scitags agent status`, and for storages that speak JSON.")
        # Tables that are there once come first, then whatever a flow passes through, in that order.
        order = {"source": 1, "enricher": 2, "backend": 3}
        parts = [self._head()]
        parts += [_toml(table) for table in sorted(self.tables, key=lambda table: order.get(table.name, 0))]
        return "\n".join(parts)

    def _head(self) -> str:
        lines = [f"# Made from a configuration of {self.daemon}."]
        for title, remarks in (("No equivalent:", self.lacking), ("Different:", self.notes)):
            if remarks:
                lines += ["#", f"# {title}", *(line for remark in remarks for line in _comment(remark))]
        return "\n".join(lines) + "\n"


def endpoint(host: str, port: int) -> str:
    """Host and port as collectors and listeners are written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a text is an address of loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _comment(remark: str) -> list[str]:
    """A remark as lines of comment, none of which is too long to read."""
    lines: list[str] = []
    rest = " ".join(remark.split())
    while rest:
        cut = rest if len(rest) <= _LINE else rest[:_LINE].rpartition(" ")[0] or rest[:_LINE]
        lines.append(f"# {'  ' if lines else '- '}{cut}")
        rest = rest[len(cut) :].strip()
    return lines


def _toml(table: Table) -> str:
    header = f"[[{table.name}]]" if table.is_one_of_many else f"[{table.name}]"
    lines = [f"# {table.why}"] if table.why else []
    return "\n".join([*lines, header, *(f"{name} = {toml_value(value)}" for name, value in table.keys.items())]) + "\n"


def toml_value(value: bool | float | str | Sequence[Any] | Mapping[str, Any]) -> str:
    """A value as TOML has it."""
    if isinstance(value, str):
        # A string of JSON is a basic string of TOML, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_value(name)} = {toml_value(one)}" for name, one in value.items()) + " }"
    items = [toml_value(one) for one in value]
    line = f"[{', '.join(items)}]"
    return (
        line
        if len(line) <= _LINE - len("remote_networks = ")
        else "[\n" + "".join(f"    {one},\n" for one in items) + "]"
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= _LINE else f"{text[:_LINE]}..."
