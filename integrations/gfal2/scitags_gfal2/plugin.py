"""The gfal2 plug-in: `scitags gfal`."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import Command


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags gfal`."""
    from scitags_gfal2 import command  # noqa: PLC0415

    return (command.COMMAND,)
