"""The collector's plug-in: `scitags observe`."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import Command


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags observe`."""
    from scitags_collector import command  # noqa: PLC0415

    return (command.COMMAND,)
