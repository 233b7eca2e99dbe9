"""The collector's plug-in: `scitags observe` and `scitags report`."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import Command


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags observe` and `scitags report`."""
    from scitags_collector import command, flow_command  # noqa: PLC0415

    return (command.COMMAND, flow_command.COMMAND)
