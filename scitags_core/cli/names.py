"""Which registry a command gives names from: its options, and where that came from."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

import msgspec

from scitags_core import registry_client, settings
from scitags_core.instant import end_of_day, format_instant
from scitags_core.registry import Registry


class Provenance(msgspec.Struct, frozen=True):
    """Where a registry came from, for programs."""

    origin: str
    location: str
    obtained: str
    age_seconds: int
    modified: str | None
    problem: str = ""


class Source(msgspec.Struct, frozen=True):
    """A registry in use, with one line for people and the same for programs on where it came from."""

    registry: Registry
    description: str
    provenance: Provenance


def add_options(parser: argparse.ArgumentParser) -> None:
    """--registry and --as-of."""
    parser.add_argument("--registry", metavar="FILE_OR_URL", help="instead of the cached or built-in one")
    parser.add_argument("--as-of", metavar="DATE", help="the registry in force at that date (or instant)")


def choose(arguments: argparse.Namespace) -> Source:
    """The registry that the options ask for, with the aliases of the configuration.

    Without options the network is not used. Raises ScitagsError.
    """
    configured = settings.load()
    if arguments.registry:
        loaded = registry_client.open_registry(arguments.registry, timeout=configured.registry.timeout)
    else:
        loaded = configured.registry.client().load()
    if arguments.as_of:
        instant = end_of_day(arguments.as_of)
        newest = loaded.registry.modified
        if not (arguments.registry and newest is not None and newest <= instant):
            loaded = msgspec.structs.replace(loaded, registry=configured.registry.client().as_of(instant))
    return describe(msgspec.structs.replace(loaded, registry=loaded.registry.with_aliases(configured.aliases)))


def describe(loaded: registry_client.Loaded) -> Source:
    """What to say of a loaded registry."""
    now = datetime.now(UTC)
    modified = loaded.registry.modified
    provenance = Provenance(
        loaded.origin,
        loaded.location,
        format_instant(loaded.obtained),
        max(0, int((now - loaded.obtained).total_seconds())),
        format_instant(modified) if modified else None,
        loaded.problem,
    )
    of = f" of {modified:%Y-%m-%d}" if modified else ""
    return Source(loaded.registry, f"registry{of}: {loaded.describe(now)}", provenance)
