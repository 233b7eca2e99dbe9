"""flowd's configuration: a file of Python, of which the assignments of plain values are read. None of it is run.

Which settings there are, and what is done when one is missing, is known from flowd 1.1.7.
"""

from __future__ import annotations

import ast
import ipaddress
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from scitags_agent.importers.draft import MAX_OCTETS_FULL, Draft
from scitags_agent.rules import Rule, Rules
from scitags_core.errors import ConfigError, shown
from scitags_core.flow import PORT_MAX

PIPE = "/var/run/flowd"
METRICS_PORT = 9000
FIREFLY_PORT = 10514
REGISTRY_URLS = ("https://www.scitags.org/api.json", "https://scitags.org/api.json", "http://www.scitags.org/api.json")
FLOW_SERIES = 1000

STUN_SERVERS = ("stun.l.google.com:19305", "stun.services.mozilla.org:3478")
# What flowd's iperf plug-ins give to connections, at random and in turn.
RANDOM_TAGS = ((2, 9), (2, 19), (3, 3), (3, 4), (4, 3), (4, 4), (5, 10), (5, 14))
TAGS_IN_TURN = ((2, 19), (2, 19), (3, 3), (3, 3), (4, 3), (4, 3), (5, 10), (5, 10))
IPERF_PORTS = "5201-5299"
# Addresses that no traffic beyond the site has: flowd passes over connections to them.
PRIVATE_NETWORKS = (
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)

# Settings that only some plug-in or backend reads.
_OF_PLUGIN = {
    "netstat": ("NETSTAT_EXPERIMENT", "NETSTAT_ACTIVITY", "NETSTAT_INTERNAL_NETWORKS"),
    "netlink": ("NETLINK_EXPERIMENT", "NETLINK_ACTIVITY", "NETLINK_INTERNAL_NETWORKS"),
    "iperf": ("NETSTAT_INTERNAL_NETWORKS", "IPERF_FLOW_ID", "IPERF_INTERNAL_NETWORKS"),
    "iperf_rr": ("NETSTAT_INTERNAL_NETWORKS", "IPERF_FLOW_ID", "IPERF_INTERNAL_NETWORKS"),
    "firefly": ("FIREFLY_LISTENER_HOST", "FIREFLY_LISTENER_PORT"),
}
_OF_BACKEND = {
    "udp_firefly": (
        "UDP_FIREFLY_DST",
        "UDP_FIREFLY_IP4_SRC",
        "UDP_FIREFLY_IP6_SRC",
        "UDP_FIREFLY_NETLINK",
        "UDP_FIREFLY_WITH_NETLINK",
    ),
    "ebpf": ("NETWORK_INTERFACE",),
    "prometheus": ("PROMETHEUS_SRV_PORT", "PROMETHEUS_SS_PATH"),
}
_COMMON = ("PLUGIN", "BACKEND", "FLOW_MAP_API", "IP_DISCOVERY_ENABLED")
KNOWN = frozenset({*_COMMON, *(name for names in (*_OF_PLUGIN.values(), *_OF_BACKEND.values()) for name in names)})
_EBPF_NAMES = ("ebpf", "ebpf_el8", "ebpf_el9")


def convert(text: str) -> Draft:
    """Our configuration for what a flowd.cfg asks for. Raises ConfigError for what is no such file."""
    draft = Draft("flowd")
    settings = _assignments(text, draft)
    for missing in ("PLUGIN", "BACKEND", "FLOW_MAP_API"):
        if missing not in settings:
            draft.note(f"{missing} is missing: flowd would not start with this file")
    plugin = _text(settings, "PLUGIN", "")
    backends = [_known_backend(name.strip()) for name in _text(settings, "BACKEND", "udp_firefly").split(",")]
    _plugin(plugin, settings, draft)
    for backend in backends:
        _backend(backend, settings, draft)
    _registry(settings, draft)
    if settings.get("IP_DISCOVERY_ENABLED") and "udp_firefly" not in backends:
        draft.lack("IP_DISCOVERY_ENABLED", True, "only fireflies bear addresses")
    in_use = {*_COMMON, *_OF_PLUGIN.get(plugin, ()), *(one for name in backends for one in _OF_BACKEND.get(name, ()))}
    for name, value in settings.items():
        if name not in KNOWN:
            draft.lack(name, value, "flowd does not read it either")
        elif name not in in_use:
            draft.lack(name, value, "flowd does not read it with this PLUGIN and BACKEND")
    return draft


def _assignments(text: str, draft: Draft) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of how somebody writes Python
            module = ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f"line {error.lineno}: {error.msg}: {shown((error.text or '').strip())}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null octets; nested too deeply
        raise ConfigError(f"no configuration of flowd: {error or 'nested too deeply'}") from None
    found: dict[str, Any] = {}
    for statement in module.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a string that stands alone is a comment
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        try:
            if not names or not isinstance(statement, ast.Assign):
                raise ValueError
            value = ast.literal_eval(statement.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            source = (ast.get_source_segment(text, statement) or "").partition("\n")[0]
            draft.lack(f"line {statement.lineno}", source, "is code, not a plain value; it was not run")
            continue
        found |= dict.fromkeys(names, value)
    return found


def _text(settings: Mapping[str, Any], name: str, default: str) -> str:
    value = settings.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"{name} {shown(value)} is not a string")
    return value


def _port(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= PORT_MAX:
        raise ConfigError(f"{name} {shown(value)} is not a port, 1..{PORT_MAX}")
    return value


def _known_backend(name: str) -> str:
    return "ebpf" if name in _EBPF_NAMES else name


def _plugin(plugin: str, settings: Mapping[str, Any], draft: Draft) -> None:
    if plugin == "np_api":
        draft.source("named_pipe", "As flowd's: every user of the host may write to it.", path=PIPE, mode="0666")
    elif plugin in ("netstat", "netlink"):
        _connections(plugin.upper(), settings, draft)
    elif plugin in ("iperf", "iperf_rr"):
        _iperf(plugin, settings, draft)
    elif plugin == "firefly":
        port = _port(settings, "FIREFLY_LISTENER_PORT", FIREFLY_PORT)
        draft.firefly_source(_text(settings, "FIREFLY_LISTENER_HOST", "0.0.0.0"), port, "PLUGIN = 'firefly'")  # noqa: S104
    elif plugin:
        draft.lack("PLUGIN", plugin, "flowd has no such plug-in")


def _connections(prefix: str, settings: Mapping[str, Any], draft: Draft) -> None:
    """One tag for every TCP connection that leaves the site."""
    tag: dict[str, Any] = {}
    for part in ("EXPERIMENT", "ACTIVITY"):
        name = f"{prefix}_{part}"
        tag[part.lower()] = settings.get(name)
        if name not in settings:
            draft.note(f"{name} is missing: flowd would not start with this file")
    tag["activity"] = tag["activity"] or 0  # as flowd has it
    networks = _networks(settings, f"{prefix}_INTERNAL_NETWORKS", draft)
    try:
        Rules([msgspec.convert(tag, Rule)])
    except (ConfigError, msgspec.ValidationError) as error:
        draft.lack(f"{prefix}_EXPERIMENT", tag["experiment"], f"no connection can be given that tag: {error}")
        return
    ignored = {"ignore": True, "remote_networks": [*PRIVATE_NETWORKS, *networks]}
    draft.source("sock_ops", "Every TCP connection that leaves the site, as the kernel opens it.", rule=[ignored, tag])


def _networks(settings: Mapping[str, Any], name: str, draft: Draft) -> list[str]:
    value = settings.get(name, ())
    networks: list[str] = []
    # ('192.0.2.0/24') is a string, and a likely slip for a tuple of one.
    for text in (value,) if isinstance(value, str) else value if isinstance(value, Iterable) else ():
        try:
            networks.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            draft.lack(name, text, f"is no network: {error}")
    return networks


def _iperf(plugin: str, settings: Mapping[str, Any], draft: Draft) -> None:
    tags, order = (RANDOM_TAGS, "random") if plugin == "iperf" else (TAGS_IN_TURN, "sequential")
    choices = [{"experiment": experiment, "activity": activity} for experiment, activity in tags]
    ports = {"ports": [IPERF_PORTS]} if plugin == "iperf" else {"local_ports": [IPERF_PORTS]}
    draft.source("iperf3", "flowd's own tags.", tags=choices, order=order, **ports)
    if plugin == "iperf":
        draft.note(f"flowd's iperf gives a tag to every connection, the agent to those with a port of {IPERF_PORTS}")
    if "NETSTAT_INTERNAL_NETWORKS" in settings:
        draft.lack("NETSTAT_INTERNAL_NETWORKS", settings["NETSTAT_INTERNAL_NETWORKS"], f"belongs to PLUGIN = {plugin}")
    for name in ("IPERF_FLOW_ID", "IPERF_INTERNAL_NETWORKS"):
        if name in settings:
            draft.lack(name, settings[name], "flowd has it in its documentation, and does not read it")


def _backend(backend: str, settings: Mapping[str, Any], draft: Draft) -> None:
    if backend == "udp_firefly":
        _fireflies(settings, draft)
    elif backend == "ebpf":
        _marker(settings, draft)
    elif backend == "prometheus":
        _metrics(settings, draft)
    elif backend == "dummy":
        draft.once("log", "BACKEND = 'dummy': a line in the log for every event.", events=True)
        draft.backend("firefly", "Sends nothing; the agent wants a backend.", name="dummy", to_destination=False)
    else:
        draft.lack("BACKEND", backend, "flowd has no such backend")


def _fireflies(settings: Mapping[str, Any], draft: Draft) -> None:
    collector = _text(settings, "UDP_FIREFLY_DST", "")
    keys: dict[str, Any] = {"collectors": [collector]} if collector else {}
    if settings.get("IP_DISCOVERY_ENABLED"):
        keys["stun"] = STUN_SERVERS
    if settings.get("UDP_FIREFLY_NETLINK") or settings.get("UDP_FIREFLY_WITH_NETLINK"):
        draft.enricher("sock_diag", "What the kernel knows of a connection, as flowd tells it.", shape="flowd")
        keys["max_octets"] = MAX_OCTETS_FULL
    draft.backend("firefly", **keys)
    for name in ("UDP_FIREFLY_IP4_SRC", "UDP_FIREFLY_IP6_SRC"):
        if settings.get(name):
            draft.lack(name, settings[name], "list in the firefly backend's public_addresses what it stands for")


def _marker(settings: Mapping[str, Any], draft: Draft) -> None:
    interfaces = [name.strip() for name in _text(settings, "NETWORK_INTERFACE", "").split(",") if name.strip()]
    draft.backend("marker", interfaces=interfaces or ["global-ipv6"])


def _metrics(settings: Mapping[str, Any], draft: Draft) -> None:
    port = _port(settings, "PROMETHEUS_SRV_PORT", METRICS_PORT)
    why = "As flowd's: whoever can reach this host may read. Each connection has series of its own, so many at most."
    draft.backend("prometheus", why, address="0.0.0.0", port=port, flow_series=FLOW_SERIES)  # noqa: S104
    draft.note("the metrics have other names (docs/agent.md), and need scitags-suite[prometheus]")
    if "PROMETHEUS_SS_PATH" in settings:
        draft.lack("PROMETHEUS_SS_PATH", settings["PROMETHEUS_SS_PATH"], "no other program is run")


def _registry(settings: Mapping[str, Any], draft: Draft) -> None:
    url = _text(settings, "FLOW_MAP_API", "")
    if url and url not in REGISTRY_URLS:
        draft.note(f"FLOW_MAP_API goes into /etc/scitags/scitags.toml: [registry] url = {url!r}")
