"""flowd-go's configuration: YAML or JSON, with plug-ins, backends and enrichers that are there when they are named.

Keys and defaults are those of flowd-go 2.4.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec

from scitags_agent.importers.draft import MAX_OCTETS_FULL, Draft, endpoint, is_loopback
from scitags_core import label
from scitags_core.errors import ConfigError, ScitagsError, shown
from scitags_core.flow import PORT_MAX, check_tag
from scitags_core.strict import convert as typed
from scitags_core.strict import nearest
from scitags_core.tag import encode

Port = Annotated[int, msgspec.Meta(ge=0, le=PORT_MAX)]
CGROUP = "/sys/fs/cgroup"
PERIOD = 1000  # milliseconds
STUN_SERVERS = ("stun.l.google.com:3478", *(f"stun{number}.l.google.com:3478" for number in range(1, 5)))
FLOW_SERIES = 1000
DEFAULT_FIREFLY_PORT = 10514
# The extension header of each of flowd-go's strategies; None: the tag is in the flow label.
HEADERS = {
    "label": None,
    "hopbyhop": "hop-by-hop",
    "destination": "destination-options",
    "hopbyhopdestination": "both",
}

_NO_PROGRAM = "no program but the one that comes with the agent is loaded"
_NOT_NEEDED = "not needed here"
_SHAPED = "what is asked of the kernel follows from the shape of what is told"


class _NamedPipe(msgspec.Struct, frozen=True, rename="camel"):
    max_readers: int = 5
    buff_size: int = 1000
    pipe_path: str = "np"


class _Api(msgspec.Struct, frozen=True, rename="camel"):
    bind_address: str = "127.0.0.1"
    bind_port: Port = 7777


class _FireflyPlugin(msgspec.Struct, frozen=True, rename="camel"):
    bind_address: str = "127.0.0.1"
    bind_port: Port = 10514
    buffer_size: int = 4096
    deadline: int = 0
    has_syslog_header: bool = False


class _Perfsonar(msgspec.Struct, frozen=True, rename="camel"):
    experiment_id: int = 0
    activity_id: int = 0


class _Iperf3(msgspec.Struct, frozen=True, rename="camel"):
    min_source_port: Port = 0
    max_source_port: Port = 0
    min_destination_port: Port = 0
    max_destination_port: Port = 0
    cgroup_path: str = CGROUP
    program_path: str = ""
    debug_mode: bool = False
    random_ids: bool = msgspec.field(default=False, name="randomIDs")
    activity_ids: tuple[int, ...] = msgspec.field(default=(0, 1, 2), name="activityIDs")
    experiment_ids: tuple[int, ...] = msgspec.field(default=(0, 1, 2), name="experimentIDs")


class _Plugins(msgspec.Struct, frozen=True, rename="camel"):
    named_pipe: _NamedPipe | None = None
    firefly: _FireflyPlugin | None = None
    api: _Api | None = None
    perfsonar: _Perfsonar | None = None
    iperf3: _Iperf3 | None = None


class _Marker(msgspec.Struct, frozen=True, rename="camel"):
    target_interfaces: tuple[str, ...] = ("lo",)
    discover_interfaces: bool = False
    remove_qdisc: bool = True
    program_path: str = ""
    marking_strategy: str = "label"
    debug_mode: bool = False
    match_all: bool = False


class _Stun(msgspec.Struct, frozen=True, rename="camel"):
    manual_mapping: dict[str, str] | None = None
    stun_servers: tuple[str, ...] = STUN_SERVERS


class _FireflyBackend(msgspec.Struct, frozen=True, rename="camel"):
    destination_port: Annotated[int, msgspec.Meta(ge=1, le=PORT_MAX)] = 10514
    prepend_syslog: bool = True
    send_to_collector: bool = False
    collector_address: str = "127.0.0.1"
    collector_port: Annotated[int, msgspec.Meta(ge=1, le=PORT_MAX)] = 10514
    enrich: bool = False
    enrichment_mode: str = "lean"
    stun: _Stun | None = None


class _Prometheus(msgspec.Struct, frozen=True, rename="camel"):
    log: bool = True
    bind_address: str = "127.0.0.1"
    netlink_port: Port = 8080
    skops_port: Port = 8081


class _Backends(msgspec.Struct, frozen=True, rename="camel"):
    marker: _Marker | None = None
    firefly: _FireflyBackend | None = None
    prometheus: _Prometheus | None = None


class _Netlink(msgspec.Struct, frozen=True, rename="camel"):
    protocol: int = 6
    ext: int = 255
    state: int = 3071


class _Skops(msgspec.Struct, frozen=True, rename="camel"):
    cgroup_path: str = CGROUP
    program_path: str = ""
    debug_mode: bool = False
    strategy: str = "poll"


class _Enrichers(msgspec.Struct, frozen=True, rename="camel"):
    period: int | None = None
    netlink: _Netlink | None = None
    skops: _Skops | None = None


class _File(msgspec.Struct, frozen=True, rename="camel"):
    pid_path: str = "/var/run/flowd-go.pid"
    work_dir: str = "/var/cache/flowd-go"
    plugins: _Plugins | None = None
    backends: _Backends | None = None
    enrichers: _Enrichers | None = None


def convert(text: str) -> Draft:
    """Our configuration for what a conf.yaml asks for. Raises ConfigError for what is no such file."""
    document = _document(text)
    file = typed(document, _File, "the configuration")
    draft = Draft("flowd-go")
    for path, value, meaning in _not_understood(document, msgspec.inspect.type_info(_File)):
        draft.lack(path, value, meaning)
    for name, value in (("pidPath", file.pid_path), ("workDir", file.work_dir)):
        if name in document:
            draft.lack(name, value, "systemd keeps track of the process, and nothing is written there")
    plugins = file.plugins or _Plugins()
    _plugins(plugins, draft)
    backends = file.backends or _Backends()
    _backends(backends, _static(plugins.perfsonar, backends.marker, draft), draft)
    _enrichers(file.enrichers or _Enrichers(), backends.firefly, draft)
    return draft


def _document(text: str) -> dict[str, Any]:
    try:
        import yaml  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("PyYAML is not installed: pip install 'scitags-suite[import]'") from None
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"no YAML: {' '.join(str(error).split()) or 'nested too deeply'}") from None
    if document is None:
        raise ConfigError("it asks for nothing: all in it is commented out, or it is empty")
    if not isinstance(document, dict):
        raise ConfigError(f"{shown(document)} is no mapping of plug-ins and backends")
    return document


def _not_understood(content: Any, kind: msgspec.inspect.Type, above: str = "") -> Iterator[tuple[str, Any, str]]:
    """The path of every key that flowd-go passes over, and what to say of it."""
    if isinstance(kind, msgspec.inspect.UnionType):
        kind = next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
    if not isinstance(kind, msgspec.inspect.StructType) or not isinstance(content, Mapping):
        return
    fields = {field.encode_name: field for field in kind.fields}
    for name, value in content.items():
        if name not in fields:
            yield f"{above}{name}", value, f"flowd-go does not know this key either{nearest(str(name), list(fields))}"
        elif value is None:
            yield f"{above}{name}", None, "is empty: flowd-go takes it as not there; {} would turn it on"
        else:
            yield from _not_understood(value, fields[name].type, f"{above}{name}.")


def _changed(one: msgspec.Struct, section: str, names: Mapping[str, str], draft: Draft) -> None:
    """Say what has no equivalent of a section's settings that are not as by default: setting -> meaning."""
    defaults = type(one)()
    renamed = {field.name: field.encode_name for field in msgspec.structs.fields(one)}
    for name, meaning in names.items():
        value = getattr(one, name)
        if value != getattr(defaults, name):
            draft.lack(f"{section}.{renamed[name]}", value, meaning)


def _plugins(plugins: _Plugins, draft: Draft) -> None:
    if plugins.named_pipe is not None:
        _pipe(plugins.named_pipe, draft)
    if plugins.api is not None:
        _api(plugins.api, draft)
    if plugins.firefly is not None:
        _firefly_source(plugins.firefly, draft)
    if plugins.iperf3 is not None:
        _iperf3(plugins.iperf3, draft)


def _pipe(pipe: _NamedPipe, draft: Draft) -> None:
    _changed(pipe, "plugins.namedPipe", {"max_readers": _NOT_NEEDED, "buff_size": _NOT_NEEDED}, draft)
    path = pipe.pipe_path
    if not PurePosixPath(path).is_absolute():
        draft.note(
            f"plugins.namedPipe.pipePath {shown(path)} is relative to where flowd-go is started: set path to where "
            "the storage writes"
        )
        path = "/var/run/flowd"
    draft.source("named_pipe", "As flowd-go's: every user of the host may write to it.", path=path, mode="0666")


def _api(api: _Api, draft: Draft) -> None:
    section = "plugins.api"
    keys: dict[str, Any] = {}
    if api.bind_address == "localhost" or is_loopback(api.bind_address):
        keys["address"] = api.bind_address
    else:
        draft.note(
            f"{section}.bindAddress {shown(api.bind_address)}: whoever is not on this host needs a token here. Until "
            "address and token_file are set, the API is at 127.0.0.1"
        )
    if api.bind_port:
        keys["port"] = api.bind_port
    else:
        draft.lack(f"{section}.bindPort", 0, "a port is named: 7777 unless set")
    draft.source("http", "flowd-go's routes, and more (docs/agent.md).", **keys)
    draft.note("HTTP needs scitags-suite[http]")


def _firefly_source(firefly: _FireflyPlugin, draft: Draft) -> None:
    section = "plugins.firefly"
    _changed(
        firefly,
        section,
        {
            "buffer_size": _NOT_NEEDED,
            "deadline": _NOT_NEEDED,
            "has_syslog_header": "each firefly shows whether it has a header",
        },
        draft,
    )
    if not firefly.bind_port:
        draft.lack(f"{section}.bindPort", 0, "storages have to know the port: 10514 is taken")
    draft.firefly_source(firefly.bind_address, firefly.bind_port or DEFAULT_FIREFLY_PORT, section)


def _iperf3(iperf3: _Iperf3, draft: Draft) -> None:
    section = "plugins.iperf3"
    _changed(iperf3, section, {"program_path": _NO_PROGRAM, "debug_mode": "the program writes no trace"}, draft)
    if len(iperf3.experiment_ids) != len(iperf3.activity_ids):
        raise ConfigError(f"{section}: experimentIDs and activityIDs are not of one length")
    tags: list[dict[str, Any]] = []
    for pair in zip(iperf3.experiment_ids, iperf3.activity_ids, strict=True):
        try:
            tag = check_tag(*pair)
            encode(*tag)
        except ScitagsError as error:
            draft.lack(f"{section}.experimentIDs, activityIDs", pair, f"is no tag: {error}")
        else:
            tags.append({"experiment": tag.experiment, "activity": tag.activity})
    if not tags:
        return
    keys: dict[str, Any] = {"tags": tags, "order": "random" if iperf3.random_ids else "sequential"}
    ranges = {
        "local_ports": (iperf3.min_source_port, iperf3.max_source_port),
        "remote_ports": (iperf3.min_destination_port, iperf3.max_destination_port),
    }
    keys |= {name: [f"{low or 1}-{high or PORT_MAX}"] for name, (low, high) in ranges.items() if low or high}
    if "local_ports" not in keys and "remote_ports" not in keys:
        keys["ports"] = [f"1-{PORT_MAX}"]
    if cgroup := _cgroup(iperf3.cgroup_path):
        keys["cgroup"] = cgroup
    draft.source("iperf3", **keys)


def _static(perfsonar: _Perfsonar | None, marker: _Marker | None, draft: Draft) -> dict[str, Any]:
    """What the plug-in perfsonar asks of the marker: that everything bears one tag."""
    if perfsonar is None:
        return {}
    ids = {"experiment": perfsonar.experiment_id, "activity": perfsonar.activity_id}
    try:
        label.encode(*check_tag(*ids.values()))
    except ScitagsError as error:
        draft.lack("plugins.perfsonar", msgspec.to_builtins(perfsonar), f"is no tag: {error}")
        return {}
    if marker is None:
        draft.lack("plugins.perfsonar", msgspec.to_builtins(perfsonar), "nothing marks: there is no backends.marker")
        return {}
    return {"static": [ids]}


def _backends(backends: _Backends, static: dict[str, Any], draft: Draft) -> None:
    if backends.marker is not None:
        _marker(backends.marker, static, draft)
    if backends.firefly is not None:
        _fireflies(backends.firefly, draft)
    if backends.prometheus is not None:
        _metrics(backends.prometheus, draft)


def _marker(marker: _Marker, static: dict[str, Any], draft: Draft) -> None:
    only_reported = {} if static else {"match_all": "without plugins.perfsonar, no tag is given for all packets"}
    section = "backends.marker"
    _changed(
        marker,
        section,
        {
            **only_reported,
            "remove_qdisc": "the agent takes away what it put there, and leaves what it found",
            "program_path": _NO_PROGRAM,
            "debug_mode": "the program writes no trace; `scitags agent status` has its counters",
        },
        draft,
    )
    strategy = marker.marking_strategy.lower()
    if strategy not in HEADERS:
        raise ConfigError(f"{section}.markingStrategy {shown(marker.marking_strategy)} is no strategy of flowd-go's")
    header = HEADERS[strategy]
    interfaces = ("global-ipv6",) if marker.discover_interfaces else marker.target_interfaces
    if header is None:
        draft.backend("marker", interfaces=interfaces, **static)
    elif static:
        only_labels = "what everything bears is a flow label; headers are put into packets of reported flows alone"
        draft.lack(f"{section}.markingStrategy", marker.marking_strategy, only_labels)
        draft.backend("marker", interfaces=interfaces, **static)
    else:
        draft.backend("extension_header", header=header, interfaces=interfaces)


def _fireflies(firefly: _FireflyBackend, draft: Draft) -> None:
    section = "backends.firefly"
    _changed(firefly, section, {"prepend_syslog": "a firefly has a syslog header, as the specification wants"}, draft)
    keys: dict[str, Any] = {"destination_port": firefly.destination_port}
    if firefly.send_to_collector:
        keys["collectors"] = [endpoint(firefly.collector_address, firefly.collector_port)]
    if firefly.enrich and _shape(firefly) != "lean":
        keys["max_octets"] = MAX_OCTETS_FULL
    if firefly.stun is not None:
        if firefly.stun.manual_mapping:
            keys["public_addresses"] = dict(firefly.stun.manual_mapping)
        if firefly.stun.stun_servers:
            keys["stun"] = firefly.stun.stun_servers
    draft.backend("firefly", **keys)


def _metrics(prometheus: _Prometheus, draft: Draft) -> None:
    section = "backends.prometheus"
    _changed(prometheus, section, {"log": "the log has one level for all (log.level)"}, draft)
    ports = [port for port in (prometheus.netlink_port, prometheus.skops_port) if port]
    if not ports:
        draft.note(f"{section}: both ports are 0, which asks for no metrics")
        return
    why = "Each connection has series of its own, so many at most."
    draft.backend("prometheus", why, address=prometheus.bind_address, port=ports[0], flow_series=FLOW_SERIES)
    if len(ports) > 1:
        draft.lack(f"{section}.skopsPort", ports[1], f"all metrics are at port {ports[0]}")
    draft.note("the metrics have other names (docs/agent.md), and need scitags-suite[prometheus]")


def _enrichers(enrichers: _Enrichers, firefly: _FireflyBackend | None, draft: Draft) -> None:
    netlink, skops = enrichers.netlink, enrichers.skops
    if netlink is not None:
        _changed(netlink, "enrichers.netlink", dict.fromkeys(("protocol", "ext", "state"), _SHAPED), draft)
    if skops is not None:
        meanings = {"program_path": _NO_PROGRAM, "debug_mode": "the program writes no trace"}
        _changed(skops, "enrichers.skops", meanings, draft)
        if skops.strategy.lower() not in ("poll", "transition"):
            raise ConfigError(f"enrichers.skops.strategy {shown(skops.strategy)} is no strategy of flowd-go's")
        keys = {"cgroup": cgroup} if (cgroup := _cgroup(skops.cgroup_path)) else {}
        draft.enricher("sock_ops", "What a connection moved, told by the kernel when it closes.", **keys)
    is_polled = netlink is not None or (skops is not None and skops.strategy.lower() == "poll")
    period = PERIOD if enrichers.period is None else enrichers.period
    if period <= 0:
        raise ConfigError(f"enrichers.period {period} is no number of milliseconds above 0")
    if not is_polled:
        if enrichers.period is not None:
            draft.lack("enrichers.period", period, "nothing is there to be asked so often")
        return
    shape = _shape(firefly or _FireflyBackend())
    draft.enricher("sock_diag", "What the kernel knows of a connection.", shape=shape)
    if firefly is None or firefly.enrich:
        draft.once("table", "What goes on is told so often.", ongoing_seconds=period / 1000)
    else:
        draft.note("what the kernel knows of a connection is told at its end, as backends.firefly.enrich is off")


def _cgroup(path: str) -> str:
    """Below the mount of cgroup2, as we have it."""
    return path.removeprefix(CGROUP).strip("/")


def _shape(firefly: _FireflyBackend) -> str:
    """Ours for flowd-go's name of what a firefly tells of a connection. Raises ConfigError."""
    shapes = {"lean": "lean", "compatible": "flowd", "": "full"}
    if firefly.enrichment_mode not in shapes:
        raise ConfigError(f"backends.firefly.enrichmentMode {shown(firefly.enrichment_mode)} is no mode of flowd-go's")
    return shapes[firefly.enrichment_mode]
