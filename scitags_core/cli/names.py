"""Which registry a command gives names from: its options, and where that came from."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scitags_core import registry_client, settings
from scitags_core.errors import InvalidValue
from scitags_core.instant import age_text, end_of_day, format_instant
from scitags_core.plugins import PluginHost
from scitags_core.registry import Registry
from scitags_core.registry_client import Loaded, RegistryClient
from scitags_core.tag import Tag

HISTORY = "history"
_SCHEME = "://"
_OWN_SCHEMES = ("http", "https")


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a registry came from, for programs.

    origin      network, cache, file, built-in; or history, for the one in force at a date
    obtained    when it was got from there
    modified    when it was published
    as_of       the instant that was asked for, where one was
    problem     why nothing better is in use
    """

    origin: str
    obtained: str
    age_seconds: int
    modified: str | None
    location: str = ""
    as_of: str = ""
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


def add_tag_options(parser: argparse.ArgumentParser) -> None:
    """Which tag, from which registry, and for whom the answer is."""
    parser.add_argument("--experiment", required=True, metavar="NAME", help="by name, alias or id")
    parser.add_argument("--activity", default="default", metavar="NAME", help="default: the experiment's default")
    parser.add_argument("--strict", action="store_true", help="refuse an unknown activity")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_options(parser)


def choose_tag(arguments: argparse.Namespace) -> Tag:
    """The tag that the options of add_tag_options ask for. Raises ScitagsError."""
    registry = choose(arguments).registry
    owner = registry.experiment(name_or_id(arguments.experiment))
    return Tag(
        owner.id, registry.activity(owner.id, name_or_id(arguments.activity), use_default=not arguments.strict).id
    )


def name_or_id(text: str) -> str | int:
    """An id where the text is one, else the name."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else text  # noqa: PLR2004


def choose(arguments: argparse.Namespace) -> Source:
    """The registry that the options ask for, with the aliases of the configuration.

    The network is used for a URL in --registry, and for nothing else. Raises ScitagsError.
    """
    configured = settings.load()
    instant = end_of_day(arguments.as_of) if arguments.as_of else None
    if arguments.registry:
        loaded = open_location(arguments.registry, configured.registry)
        newest = loaded.registry.modified
        if instant and (newest is None or newest > instant):
            of = f"of {format_instant(newest)}" if newest else "of no date"
            raise InvalidValue(
                f"--as-of {arguments.as_of}: the registry {arguments.registry} is {of}; "
                f"leave out --registry to have names of that time"
            )
    else:
        client = client_for(configured.registry.url, configured.registry)
        loaded = client.load()
        if instant:
            return _of_history(client.as_of(instant).with_aliases(configured.aliases), instant, loaded)
    return describe(msgspec.structs.replace(loaded, registry=loaded.registry.with_aliases(configured.aliases)))


def tell(source: Source) -> None:
    """Say on standard error which registry an answer's names are from."""
    print(source.description, file=sys.stderr)


def is_url(location: str) -> bool:
    return _SCHEME in location


def open_location(location: str, configured: settings.RegistrySettings) -> Loaded:
    """The registry in a file or, now, at a URL. Raises RegistryError for a file that is none."""
    if is_url(location):
        return client_for(location, configured).update()
    return registry_client.open_registry(location)


def client_for(url: str, configured: settings.RegistrySettings) -> RegistryClient:
    """The client for a URL, whose scheme a plug-in may have to know. Raises InvalidValue when none does."""
    fetch = None
    scheme, mark, _ = url.partition(_SCHEME)
    if mark and scheme not in _OWN_SCHEMES:
        sources = PluginHost.load().collect("provide_registry_sources")
        fetch = next((one.fetch for one in sources if one.scheme == scheme), None)
        if fetch is None:
            raise InvalidValue(f"registry {url!r}: no plug-in fetches from {scheme}{_SCHEME}")
    cache_dir = Path(configured.cache_dir) if configured.cache_dir else None
    return RegistryClient(url, cache_dir=cache_dir, timeout=configured.timeout, fetch=fetch)


def describe(loaded: Loaded) -> Source:
    """What to say of a loaded registry."""
    now = datetime.now(UTC)
    modified = loaded.registry.modified
    provenance = Provenance(
        loaded.origin,
        format_instant(loaded.obtained),
        max(0, int((now - loaded.obtained).total_seconds())),
        format_instant(modified) if modified else None,
        loaded.location,
        problem=loaded.problem,
    )
    of = f" of {modified:%Y-%m-%d}" if modified else ""
    return Source(loaded.registry, f"registry{of}: {loaded.describe(now)}", provenance)


def _of_history(registry: Registry, instant: datetime, newest: Loaded) -> Source:
    modified = registry.modified
    assert modified is not None  # or it could not be known to be of that time
    age = datetime.now(UTC) - modified
    published = format_instant(modified)
    seconds = max(0, int(age.total_seconds()))
    provenance = Provenance(
        HISTORY, published, seconds, published, as_of=format_instant(instant), problem=newest.problem
    )
    note = f"; {newest.problem}" if newest.problem else ""
    line = f"registry of {modified:%Y-%m-%d}: in force on {instant:%Y-%m-%d}, {age_text(age)} old{note}"
    return Source(registry, line, provenance)
