"""The dCache plug-in: `scitags dcache`, and the tag on requests to its doors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scitags_core import hookimpl
from scitags_core.roles import Command, Injector
from scitags_core.tag import Tag


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags dcache`."""
    from scitags_dcache import command  # noqa: PLC0415

    return (command.COMMAND,)


@hookimpl
def provide_injectors() -> Iterable[Injector]:
    """The tag on a request to a door: {"method", "url", "headers"}."""
    return (Injector("dcache", _tag),)


def _tag(request: Any, tag: Tag) -> dict[str, Any]:
    from scitags_dcache.request import inject  # noqa: PLC0415

    return inject(request, tag)
