"""The dCache plug-in: `scitags dcache`."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import Command


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags dcache`."""
    from scitags_dcache import command  # noqa: PLC0415

    return (command.COMMAND,)
