"""The agent's configuration: TOML to typed values, unknown keys refused.

[agent]    shutdown_seconds, state_directory, namespaces
[log]      level, format, events
[table]    idle_seconds, max_transfers, ongoing_seconds, reorder_seconds,
           gone_seconds, match, match_seconds
[[source]], [[backend]], [[enricher]]     kind, name, and the keys of that kind
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from scitags_core.errors import ConfigError, PluginError, shown
from scitags_core.plugins import PluginHost
from scitags_core.roles import BackendKind, EnricherKind, SourceKind
from scitags_core.strict import convert, nearest, read_toml

AUTO = "auto"
_USUAL_FILE = Path("/etc/scitags/agent.toml")
_USUAL_DIRECTORY = Path("/run/scitags")

Positive = Annotated[float, msgspec.Meta(gt=0)]


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[agent]: how long a clean shutdown may take, and where the agent writes down what is to outlive it.

    state_directory: on a memory file system, and for this agent alone. "auto" is a directory of its own for each
    configuration file, under /run/scitags; "" keeps nothing, and marks go when the agent is killed.

    namespaces: network namespaces besides the agent's own in which flows are found, matched, marked and seen to end
    (scitags_agent.namespaces). Whatever has a key of that name, and does not set it, gets these.
    """

    shutdown_seconds: Positive = 5.0
    state_directory: str = AUTO
    namespaces: list[str] = []


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log]: events asks for a line at info for every flow event."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    events: bool = False


class TableSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[table]: when a silent flow counts as ended, and how many transfers are remembered at most.

    ongoing_seconds   how often backends are told of each transfer that goes on; 0: never
    reorder_seconds   how long an end that came before its start waits for it
    gone_seconds      how often it is looked which connections are no more; their transfers end. 0: never
    match             find the connection of an event whose ports are not all known (0)
    match_seconds     how long a start waits for its connection, which is expected for as long
    """

    idle_seconds: Positive = 86400.0
    ongoing_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    reorder_seconds: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    gone_seconds: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    match: bool = True
    match_seconds: Positive = 5.0
    max_transfers: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    agent: AgentSettings = AgentSettings()
    log: LogSettings = LogSettings()
    table: TableSettings = TableSettings()
    source: list[dict[str, Any]] = []
    backend: list[dict[str, Any]] = []
    enricher: list[dict[str, Any]] = []


class Instance(msgspec.Struct, frozen=True):
    """One configured source, backend or enricher: its unique name, its kind and its settings."""

    name: str
    kind: SourceKind | BackendKind | EnricherKind
    settings: msgspec.Struct

    def create(self) -> Any:
        """The thing itself. Raises ConfigError for settings that no single key shows to be wrong."""
        try:
            return self.kind.create(self.settings)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None


class BackendOptions(msgspec.Struct, frozen=True):
    """What every backend has beside its own keys.

    queue is in changes. When a required backend cannot start, the agent does not start either.
    """

    queue: Annotated[int, msgspec.Meta(ge=1)] = 1 << 17
    required: bool = False


class Config(msgspec.Struct, frozen=True):
    """The whole, checked; ledger is the directory for what outlives the agent, if there is to be one."""

    agent: AgentSettings
    log: LogSettings
    table: TableSettings
    sources: list[Instance]
    backends: list[tuple[Instance, BackendOptions]]
    enrichers: list[Instance]
    ledger: Path | None = None


def read(path: Path, plugins: PluginHost) -> Config:
    """The configuration in a file, with the kinds that the plug-ins offer. Raises ConfigError."""
    return parse(read_toml(path), plugins, str(path))


def parse(document: Mapping[str, Any], plugins: PluginHost, where: str) -> Config:
    """The configuration in tables that are already read; where names them in errors."""
    tables = convert(document, _Document, where)
    if not tables.source:
        raise ConfigError(f"{where}: no [[source]]: the agent would hear of no flow")
    if not tables.backend:
        raise ConfigError(f"{where}: no [[backend]]: the agent would do nothing about any flow")
    option_names = {field.name for field in msgspec.structs.fields(BackendOptions)}
    options = [
        convert({k: v for k, v in table.items() if k in option_names}, BackendOptions, f"{where}: backend")
        for table in tables.backend
    ]
    own = [{k: v for k, v in table.items() if k not in option_names} for table in tables.backend]
    common = {"namespaces": _namespaces(tables.agent.namespaces, where)} if tables.agent.namespaces else {}
    backends = _instances("backend", own, plugins.collect("provide_backends"), plugins, where, common=common)
    sources = _instances("source", tables.source, plugins.collect("provide_sources"), plugins, where, common=common)
    for instances in (sources, backends):
        _check_paths(instances, where)
    enrichers = _instances(
        "enricher", tables.enricher, plugins.collect("provide_enrichers"), plugins, where, common=common
    )
    return Config(
        _looking_everywhere(tables.agent, [*sources, *backends, *enrichers]),
        tables.log,
        tables.table,
        sources,
        list(zip(backends, options, strict=True)),
        enrichers,
        _ledger_directory(tables.agent.state_directory, where),
    )


_ALONE_AT_A_PATH = frozenset({"named_pipe", "unix", "http", "jsonl"})


def _check_paths(instances: Sequence[Instance], where: str) -> None:
    """ConfigError for two that would read one pipe, serve one socket or write one file: each would spoil the other."""
    names: dict[str, str] = {}
    for one in instances:
        for path in (getattr(one.settings, key, "") for key in ("path", "socket")):
            if path and one.kind.kind in _ALONE_AT_A_PATH and names.setdefault(path, one.name) != one.name:
                raise ConfigError(f"{where}: {names[path]} and {one.name} have one path, {shown(path)}")


def _ledger_directory(setting: str, where: str) -> Path | None:
    """Where the ledger is: each configuration file has its own, so that agents side by side do not share one."""
    if setting != AUTO:
        return Path(setting) if setting else None
    # Under systemd, RuntimeDirectory= makes one for us, whoever we are.
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    personal = os.environ.get("XDG_RUNTIME_DIR", "") if os.geteuid() else ""
    base = Path(runtime) if runtime else Path(personal) / "scitags" if personal else _USUAL_DIRECTORY
    if Path(where) == _USUAL_FILE:
        return base / "state"
    return base / f"state-{zlib.crc32(os.fsencode(Path(where).absolute())):08x}"


def _looking_everywhere(agent: AgentSettings, instances: Sequence[Instance]) -> AgentSettings:
    """With the namespaces that only some part has named: what is found or marked there is to end there, too."""
    named = [one for instance in instances for one in getattr(instance.settings, "namespaces", ())]
    return msgspec.structs.replace(agent, namespaces=list(dict.fromkeys([*agent.namespaces, *named])))


def _namespaces(patterns: list[str], where: str) -> list[str]:
    from scitags_agent.namespaces import checked  # noqa: PLC0415  # few agents need it

    try:
        return list(checked(patterns))
    except ConfigError as error:
        raise ConfigError(f"{where}: agent: {error}") from None


def _left_out(plugins: PluginHost) -> str:
    """Which plug-ins failed: the kind that was asked for may be among theirs."""
    failed = [f"{plugin.name} ({plugin.problem})" for plugin in plugins.plugins if plugin.problem]
    return f". Plug-ins left out: {'; '.join(failed)}" if failed else ""


def _instances(
    role: str,
    tables: Sequence[Mapping[str, Any]],
    kinds: Sequence[SourceKind | BackendKind | EnricherKind],
    plugins: PluginHost,
    where: str,
    *,
    common: Mapping[str, Any],
) -> list[Instance]:
    """common are settings of those kinds that have them, where the table does not say otherwise."""
    by_name = {kind.kind: kind for kind in kinds}
    found: list[Instance] = []
    names: set[str] = set()
    for number, table in enumerate(tables, 1):
        place = f"{where}: {role} {number}"
        kind = table.get("kind")
        if not isinstance(kind, str) or kind not in by_name:
            raise ConfigError(f"{place}: no kind {shown(kind)}{nearest(str(kind), list(by_name))}{_left_out(plugins)}")
        name = table.get("name", kind if kind not in names else f"{kind}-{number}")
        if not isinstance(name, str) or not name or name in names:
            raise ConfigError(f"{place}: name {shown(name)} is not a name of its own")
        names.add(name)
        own = {key: value for key, value in table.items() if key not in ("kind", "name")}
        try:
            loaded = by_name[kind].loaded()
        except (ImportError, PluginError) as error:
            raise ConfigError(f"{place} ({kind}): {error}") from None
        has = {field.name for field in msgspec.structs.fields(loaded.settings)} if common else set()
        own = {key: value for key, value in common.items() if key in has} | own
        found.append(Instance(name, loaded, convert(own, loaded.settings, f"{place} ({kind})")))
    return found
