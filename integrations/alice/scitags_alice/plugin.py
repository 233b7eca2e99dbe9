"""The ALICE plug-in: `scitags alice`."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import Command


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags alice`."""
    from scitags_alice import command  # noqa: PLC0415

    return (command.COMMAND,)
