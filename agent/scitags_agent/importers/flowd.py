"""flowd's configuration: a file of Python, of which the assignments of plain values are read. None of it is run.

Which settings there are, and what is done when one is missing, is known from flowd 1.1.7.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any

from scitags_agent.importers.draft import Draft
from scitags_core.errors import ConfigError, shown
from scitags_core.flow import PORT_MAX

PIPE = "/var/run/flowd"
METRICS_PORT = 9000
REGISTRY_URLS = ("https://www.scitags.org/api.json", "https://scitags.org/api.json", "http://www.scitags.org/api.json")
FLOW_SERIES = 1000

_NO_SCAN = "nothing here looks for connections by itself: whoever moves the data has to tell the agent"
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
    if settings.get("IP_DISCOVERY_ENABLED"):
        draft.lack("IP_DISCOVERY_ENABLED", True, "fireflies bear the addresses that the flows were reported with")
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
        return
    if plugin:
        meanings = {
            "firefly": "fireflies of others are not taken in; have the storage write to the named pipe",
            "netstat": _NO_SCAN,
            "netlink": _NO_SCAN,
            "iperf": _NO_SCAN,
            "iperf_rr": _NO_SCAN,
        }
        draft.lack("PLUGIN", plugin, meanings.get(plugin, "flowd has no such plug-in"))
        for name in _OF_PLUGIN.get(plugin, ()):
            if name in settings:
                draft.lack(name, settings[name], f"belongs to PLUGIN = {plugin}")


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
    draft.backend("firefly", collectors=[collector] if collector else [])
    for name in ("UDP_FIREFLY_IP4_SRC", "UDP_FIREFLY_IP6_SRC"):
        if settings.get(name):
            draft.lack(name, settings[name], "fireflies bear the addresses that the flows were reported with")
    for name in ("UDP_FIREFLY_NETLINK", "UDP_FIREFLY_WITH_NETLINK"):
        if settings.get(name):
            draft.lack(name, settings[name], "nothing is added to fireflies that the storage did not report")


def _marker(settings: Mapping[str, Any], draft: Draft) -> None:
    interfaces = [name.strip() for name in _text(settings, "NETWORK_INTERFACE", "").split(",") if name.strip()]
    if interfaces:
        draft.backend("marker", interfaces=interfaces)
        return
    draft.backend("marker", "Every interface but loopback.")
    draft.note("NETWORK_INTERFACE is missing: flowd marks on interfaces with a global IPv6 address, the agent on all")


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
