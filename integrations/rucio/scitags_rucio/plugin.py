"""The Rucio plug-in: `scitags rucio`."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import Command


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags rucio`."""
    return ()
