"""What stands in the way of tagged transfers in dCache's configuration, with file and line."""

from __future__ import annotations

from collections.abc import Iterator

from scitags_core.cli.finding import Finding, Severity
from scitags_core.errors import InvalidValue
from scitags_core.registry import Registry
from scitags_dcache import config, destination, release, vo_mapping
from scitags_dcache.properties import Configuration, Property, Service

POOL = "pool"
_PREFIX = "pool.firefly."
_BOOLEANS = frozenset({"true", "false"})


def check(
    configuration: Configuration,
    registry: Registry,
    *,
    agent: str = destination.AGENT,
    of_release: release.Release | None = None,
) -> list[Finding]:
    """What is to be said, each thing once. agent is where it hears fireflies. Raises InvalidValue when that is none."""
    heard = destination.parse(agent)
    first = configuration.sections[0].path
    found = [Finding(severity, first, text) for severity, text in release.judge(of_release)] if of_release else []
    services = list(configuration.services())
    pools = [one for one in services if one.section.service == POOL]
    if not services:
        pools = [configuration.common]  # dcache.conf alone: what it says holds for whatever pools there are
    elif not pools:
        found.append(Finding("error", first, "there is no section of a pool: [domain/pool]"))
    for pool in pools:
        found += _Pool(pool, registry, agent, heard).findings()
    found += _misplaced(configuration)
    return list(dict.fromkeys(found))


class _Pool:
    """One pool's properties, judged."""

    def __init__(self, pool: Service, registry: Registry, agent: str, heard: tuple[str, int]) -> None:
        self._pool = pool
        self._registry = registry
        self._agent = agent
        self._heard = heard

    def findings(self) -> Iterator[Finding]:
        yield from self._booleans()
        yield from self._unresolved()
        yield from self._destination()
        yield from self._excludes()
        yield from self._mapping()

    def _said(self, name: str) -> str:
        """What a property says; empty when it is not set, or refers to what these files do not tell."""
        value = (self._pool.value(name) or "").strip()
        return "" if "${" in value else value

    def _about(self, severity: Severity, name: str, text: str) -> Finding:
        """Something about a property, where it is set; else at the section that lacks it."""
        one = self._pool.properties.get(name)
        return Finding(severity, one.where if one else self._pool.section.where, f"{name}: {text}")

    def _booleans(self) -> Iterator[Finding]:
        for name in (config.ENABLE, config.STATISTICS):
            said = self._said(name)
            if said and said not in _BOOLEANS:
                yield self._about("error", name, f"{said!r} is neither true nor false, and dCache does not start")
        if self._said(config.ENABLE) in ("", "false") and not self._refers(config.ENABLE):
            yield self._about("error", config.ENABLE, "is not true, so that the pool tells nobody of its transfers")

    def _refers(self, name: str) -> bool:
        return "${" in (self._pool.value(name) or "")

    def _unresolved(self) -> Iterator[Finding]:
        for name in config.NAMES:
            if self._refers(name):
                value = self._pool.value(name)
                yield self._about("note", name, f"{value} refers to what these files do not set; it was not looked at")

    def _destination(self) -> Iterator[Finding]:
        if self._refers(config.DESTINATION):
            return
        said = self._said(config.DESTINATION)
        if not said:
            text = f"is not set: fireflies go to the clients' hosts alone, not to the agent at {self._agent}"
            yield self._about("error", config.DESTINATION, text)
            return
        try:
            where = destination.parse(said)
        except InvalidValue as error:
            yield self._about("error", config.DESTINATION, str(error))
            return
        if not destination.is_same(where, self._heard):
            host, port = where
            shown = f"{said} (address {host}, port {port})" if said.count(":") > 1 else said
            text = f"{shown} is not the agent, which is at {self._agent} and passes on what it hears (relay)"
            yield self._about("error", config.DESTINATION, text)

    def _excludes(self) -> Iterator[Finding]:
        networks = [one.strip() for one in self._said(config.EXCLUDES).split(",") if one.strip()]
        for one in networks:
            try:
                config.check_exclude(one)
            except InvalidValue as error:
                yield self._about("error", config.EXCLUDES, f"{error}, and the pool does not start")
        if networks:
            text = "transfers of which both ends are in one of these are not told, and so neither marked nor counted"
            yield self._about("note", config.EXCLUDES, text)

    def _mapping(self) -> Iterator[Finding]:
        if self._refers(config.VO_MAPPING):
            return
        said = self._said(config.VO_MAPPING)
        if not said:
            text = "is not set: which experiment a transfer without a tag is of is up to the defaults of the release"
            yield self._about("warning", config.VO_MAPPING, text)
            return
        for severity, text in vo_mapping.judge(said, self._registry):
            yield self._about(severity, config.VO_MAPPING, text)


def _misplaced(configuration: Configuration) -> Iterator[Finding]:
    """Properties of fireflies that no pool is given, or that there are not."""
    with_pools = {section.domain for section in configuration.sections if section.service == POOL}
    has_services = any(section.service for section in configuration.sections)
    for section in configuration.sections:
        ours = [one for one in section.properties.values() if one.name == config.ENABLE or _is_ours(one)]
        for one in ours:
            if one.annotation and not one.is_default:
                text = f"{one.name}: {one.annotation} before the name is for dCache's own defaults alone: remove it"
                yield Finding("error", one.where, text)
            if one.name not in config.NAMES:
                yield Finding("error", one.where, f"there is no property {one.name}{_meant(one.name)}")
            elif section.service not in ("", POOL):
                text = f"{one.name} has no effect in {section.title}: it is a property of pools"
                yield Finding("error", one.where, text)
            elif section.domain and not section.service and has_services and section.domain not in with_pools:
                yield Finding("error", one.where, f"{one.name} has no effect in {section.title}, which has no pool")


def _is_ours(one: Property) -> bool:
    return one.name.startswith(_PREFIX) or "firefly" in one.name.lower()


def _meant(name: str) -> str:
    """The property that someone may have meant who wrote another name."""
    near = {_letters(one): one for one in config.NAMES}
    wanted = _letters(name).removesuffix("enabled")
    known = near.get(wanted)
    return f"; it is called {known}" if known else f"; there are {', '.join(config.NAMES)}"


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
