"""The hooks: everything that a plug-in can add to scitags-suite, our own rooms included.

A plug-in is a module with functions of these names, each marked with `scitags_core.hookimpl`, named in
the entry-point group "scitags" of its distribution. A hook is called when its answer is needed, never at
import. A plug-in that raises is reported by name and left out of that answer; the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from scitags_core.roles import (
    BackendKind,
    Command,
    EnricherKind,
    Injector,
    RegistrySource,
    SourceKind,
)

PROJECT = "scitags"
hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def provide_sources() -> Iterable[SourceKind]:
    """Return the kinds of source that the agent can be configured with.

    A source brings flow events into the agent. Several instances may run at once.
    """
    return ()


@hookspec
def provide_backends() -> Iterable[BackendKind]:
    """Return the kinds of backend that the agent can be configured with.

    A backend is handed every change in the table of flows. It has a queue of its own: when it is slow,
    that queue grows, and beyond its bound changes are dropped and counted for it alone.
    """
    return ()


@hookspec
def provide_enrichers() -> Iterable[EnricherKind]:
    """Return the kinds of enricher that the agent can be configured with.

    An enricher adds to an event before the table sees it. Enrichers run in the order of configuration.
    """
    return ()


@hookspec
def provide_injectors() -> Iterable[Injector]:
    """Return functions that put a tag into a system's transfer requests.

    One interface for all systems: given a request in the system's own form and a tag, return it tagged.
    An injector must leave a request that it does not understand to its caller, by raising InvalidValue:
    the transfer then goes on untagged.
    """
    return ()


@hookspec
def provide_registry_sources() -> Iterable[RegistrySource]:
    """Return other places to have the registry from, by URL scheme."""
    return ()


@hookspec
def provide_commands() -> Iterable[Command]:
    """Return subcommands of `scitags`.

    They are collected at each start of the command: whatever costs time belongs into Command.run.
    """
    return ()
