"""What stands in the way of marking and announcing on this host, and how to mend it.

Everything is found out by trying, not by the kernel's version: distributions bring back what they need.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from scitags_agent.config import Config
from scitags_agent.finding import Finding
from scitags_agent.header_findings import header_findings
from scitags_agent.host_facts import missing_rights, read, sysctl
from scitags_core.errors import ConfigError, ScitagsError

MTU_OF_IPV6 = 1280
DATAGRAMS = 64  # in the queue of a Unix socket, from which on a burst of events is not dropped at once
LOW_SPACE = 64 << 20
_MARKERS_CAPABILITIES = {12: "CAP_NET_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}


def examine(config: Config | None) -> list[Finding]:
    """All findings, for a configuration, or for a host on which everything may be wanted."""
    backends = {one.kind.kind for one, _ in config.backends} if config else {"marker", "firefly"}
    sources = {one.kind.kind for one in config.sources} if config else {"unix"}
    enrichers = {one.kind.kind for one in config.enrichers} if config else set()
    found = [_kernel()]
    if config is not None:
        found += _settings(config)
    if "marker" in backends:
        found += [
            _capabilities("marker", _MARKERS_CAPABILITIES),
            _program(config),
            _ways(),
            _kernel_labels(),
            _labels(),
        ]
    found += _interfaces(_patterns(config))
    if "extension_header" in backends:
        found += header_findings(config)
    if config is not None and config.agent.namespaces:
        found += _namespaces(config.agent.namespaces)
    if {"sock_ops", "iperf3"} & (sources | enrichers):
        found += [_cgroup(), _connections()]
    if "firefly" in backends and config is not None:
        found += _collectors(config)
    if "unix" in sources:
        found.append(_datagrams())
    found.append(_ledger(config))
    return found


def _kernel() -> Finding:
    return Finding("kernel", "good", f"Linux {platform.release()} on {platform.machine()}")


def _settings(config: Config) -> Iterator[Finding]:
    """What no single key shows to be wrong, and what is to be there before the agent is."""
    for one in (*config.sources, *config.enrichers, *(backend for backend, _ in config.backends)):
        try:
            one.create()
        except ConfigError as error:
            yield Finding("configuration", "bad", str(error), "the agent does not start with it")
    for one, _ in config.backends:
        for address in getattr(one.settings, "source", []):
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                try:
                    probe.bind((address, 0))
                except OSError as error:
                    text = f"cannot be sent from: {error.strerror}"
                    yield Finding(f"{one.name}: {address}", "bad", text, "name one that `ip address` shows")
        if one.kind.kind == "jsonl":
            yield from _records(one.name, Path(getattr(one.settings, "path", "")))


def _records(name: str, path: Path) -> Iterator[Finding]:
    if not path.parent.is_dir():
        yield Finding(f"{name}: {path}", "bad", f"there is no directory {path.parent}", f"mkdir -p {path.parent}")
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        yield Finding(f"{name}: {path}", "bad", "cannot be written to", "LogsDirectory= in the unit, or another path")


def _capabilities(backend: str, wanted: Mapping[int, str]) -> Finding:
    missing = missing_rights(wanted)
    if missing:
        remedy = f"run as root, or give the unit AmbientCapabilities={' '.join(sorted(wanted.values()))}"
        return Finding("capabilities", "bad", f"{', '.join(sorted(missing))} missing in this process", remedy)
    return Finding("capabilities", "good", f"those that the {backend} needs")


def _program(config: Config | None) -> Finding:
    from scitags_agent.backends.marker import MarkerSettings  # noqa: PLC0415
    from scitags_agent.bpf.loader import MarkerProgram  # noqa: PLC0415

    backends = [one.settings for one, _ in config.backends] if config is not None else []
    settings = next((one for one in backends if isinstance(one, MarkerSettings)), MarkerSettings())
    try:
        program = MarkerProgram(max_flows=1, loader=settings.loader)
    except (ScitagsError, OSError) as error:
        return Finding("eBPF program", "bad", str(error), "until then fireflies are sent, and no packet is marked")
    loader, why_not, why_not_in_batches = program.loader, program.why_not_in_place, program.why_not_in_batches
    program.close()
    way = "in place, clones by its helper" if why_not is None else f"by its helper ({why_not})"
    at_once = "many at a time" if why_not_in_batches is None else f"one by one ({why_not_in_batches})"
    text = f"the kernel takes it, loaded by {loader}; labels are written {way}; flows are told to it {at_once}"
    return Finding("eBPF program", "good", text)


def _ways() -> Finding:
    from scitags_agent.bpf.attach import tcx_programs  # noqa: PLC0415

    loopback = socket.if_nametoindex("lo")
    try:
        tcx_programs(loopback)
    except (OSError, ScitagsError) as error:
        try:
            import pyroute2  # noqa: F401, PLC0415
        except ImportError:
            return Finding(
                "attaching", "bad", f"no TCX ({error}), and clsact needs pyroute2", "pip install 'scitags-suite[agent]'"
            )
        return Finding("attaching", "good", "by clsact, as this kernel has no TCX (or does not tell us)")
    return Finding("attaching", "good", "by TCX")


def _kernel_labels() -> Finding:
    from scitags_agent.bpf.kernel_label import probe  # noqa: PLC0415

    reason = probe()
    if reason is None:
        return Finding("labels of TCP", "good", "written by the kernel itself, without a program for each packet")
    return Finding("labels of TCP", "note", reason, "until then all labels are written by the program, at tc")


def _labels() -> Finding:
    values = [sysctl(f"net/ipv6/{name}") for name in ("flowlabel_consistency", "auto_flowlabels")]
    return Finding(
        "flow labels",
        "note" if values[1] not in ("0", "") else "good",
        f"net.ipv6.flowlabel_consistency={values[0]}, net.ipv6.auto_flowlabels={values[1]}",
        "untagged packets bear the kernel's own, random labels, which readers tell apart only by the registry; "
        "sysctl net.ipv6.auto_flowlabels=0 leaves them without, and then all labels are written at tc"
        if values[1] not in ("0", "")
        else "",
    )


def _patterns(config: Config | None) -> list[list[str]]:
    """Those of each backend that needs an interface; headers may do with sockets, unless some are named."""
    if config is None:
        return [["*"]]
    wanted = [(one.kind.kind, list(getattr(one.settings, "interfaces", []))) for one, _ in config.backends]
    return [some for kind, some in wanted if kind == "marker" or (kind == "extension_header" and some != ["*"])]


def _interfaces(wanted: Sequence[Sequence[str]]) -> Iterator[Finding]:
    from scitags_agent.bpf.interfaces import matching  # noqa: PLC0415

    for patterns in wanted:
        if not matching(patterns):
            yield Finding("interfaces", "bad", f"none matches {', '.join(patterns)}", "name one that `ip link` shows")
            continue
        for pattern in patterns:
            if not matching([pattern]):
                yield Finding(f"interface {pattern}", "note", "there is none now", "the agent waits for it; `ip link`")
    global_ones = _with_global_addresses()
    for one in sorted({one for patterns in wanted for one in matching(patterns)}, key=lambda one: one.index):
        mtu = read(f"/sys/class/net/{one.name}/mtu")
        state = read(f"/sys/class/net/{one.name}/operstate")
        has_address = one.name in global_ones
        bridge = Path(f"/sys/class/net/{one.name}/master")
        if mtu.isdigit() and int(mtu) < MTU_OF_IPV6:
            yield Finding(one.name, "bad", f"MTU {mtu}: IPv6 needs {MTU_OF_IPV6}", f"ip link set {one.name} mtu 1500")
        elif not has_address and bridge.exists():  # it has none of its own: the other end is a container, mostly
            yield Finding(one.name, "good", f"{state}, MTU {mtu}, a port of {bridge.resolve().name}")
        else:
            yield Finding(
                one.name,
                "good" if has_address else "note",
                f"{state}, MTU {mtu}, {'a' if has_address else 'no'} global IPv6 address",
                "" if has_address else "only IPv6 packets have a flow label",
            )


def _with_global_addresses() -> set[str]:
    """Interfaces with a global IPv6 address (scope 0 in the kernel's list)."""
    lines = [line.split() for line in read("/proc/net/if_inet6").splitlines()]
    return {fields[5] for fields in lines if len(fields) == 6 and fields[3] == "00"}  # noqa: PLR2004


def _namespaces(patterns: Sequence[str]) -> Iterator[Finding]:
    """Of other network namespaces: which there are, and whether they can be looked into."""
    from scitags_agent.bpf.namespaces import enter, in_passing_thread  # noqa: PLC0415
    from scitags_agent.namespaces import Finder  # noqa: PLC0415

    rights = "packaging/systemd/namespaces.conf has the rights that are needed"
    finder = Finder(patterns)
    found = finder.find().values()
    for pattern in finder.missing():
        yield Finding(f"namespace {pattern}", "note", "there is none now", "the agent waits for it; `lsns -t net`")
    for one in found:
        try:
            in_passing_thread(partial(enter, one.path)).result()
        except OSError as error:
            why = f"it cannot be entered: {error.strerror}" + _lacking({21: "CAP_SYS_ADMIN"})
            yield Finding(f"namespace {one.name}", "bad", why, rights)
        else:
            yield Finding(f"namespace {one.name}", "good", f"net:[{one.number}] can be looked into")
    missing = missing_rights({19: "CAP_SYS_PTRACE"})
    if finder.is_denied:
        text = "those of some processes cannot be seen" + _lacking({19: "CAP_SYS_PTRACE"})
        yield Finding("namespaces of processes", "bad", text, rights)
    elif missing:
        text = "CAP_SYS_PTRACE missing in this process: in which namespace a sender to the Unix socket is stays unknown"
        yield Finding("namespaces of processes", "note", text, rights)


def _lacking(wanted: Mapping[int, str]) -> str:
    missing = missing_rights(wanted)
    return f" ({', '.join(sorted(missing))} missing in this process)" if missing else ""


def _cgroup() -> Finding:
    for line in read("/proc/mounts").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":  # noqa: PLR2004
            return Finding("cgroup2", "good", f"mounted at {fields[1]}")
    return Finding("cgroup2", "bad", "not mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified (systemd does it)")


def _connections() -> Finding:
    from scitags_agent.bpf.connections import probe  # noqa: PLC0415

    reason = probe()
    return (
        Finding("sock_ops", "bad", reason, "use the kind sock_diag") if reason else Finding("sock_ops", "good", "works")
    )


def _collectors(config: Config) -> Iterator[Finding]:
    from scitags_agent.collectors import split_host_port  # noqa: PLC0415

    for instance, _ in config.backends:
        for text in getattr(instance.settings, "collectors", []):
            host, port = split_host_port(text)
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            except OSError as error:
                yield Finding(f"collector {text}", "bad", f"the name cannot be looked up: {error.strerror}", "mend DNS")
                continue
            family, kind, protocol, _, address = found[0]
            with socket.socket(family, kind, protocol) as probe:
                try:
                    probe.connect(address)  # UDP: asks for a route, and sends nothing
                    yield Finding(f"collector {text}", "good", f"there is a route to {address[0]}")
                except OSError as error:
                    yield Finding(
                        f"collector {text}", "bad", f"no way to {address[0]}: {error.strerror}", "mend the route"
                    )


def _datagrams() -> Finding:
    value = sysctl("net/unix/max_dgram_qlen")
    if value.isdigit() and int(value) < DATAGRAMS:
        return Finding(
            "Unix datagrams",
            "note",
            f"net.unix.max_dgram_qlen={value}: a sender that does not wait loses what comes in a burst",
            'sysctl net.unix.max_dgram_qlen=512 before the agent starts, or type = "seqpacket"',
        )
    return Finding("Unix datagrams", "good", f"net.unix.max_dgram_qlen={value}")


def _ledger(config: Config | None) -> Finding:
    directory = config.ledger if config else Path("/run/scitags/state")
    if directory is None:
        return Finding("ledger", "note", "none is kept: a killed agent loses its table", 'state_directory = "auto"')
    there = next(one for one in (directory, *directory.parents) if one.exists())
    if not os.access(there, os.W_OK):
        return Finding(
            "ledger", "bad", f"{there} cannot be written to", "RuntimeDirectory= in the unit, or state_directory"
        )
    free = shutil.disk_usage(there).free
    if free < LOW_SPACE:
        return Finding(
            "ledger", "bad", f"{there} has {free >> 20} MB left", "make room, or choose another state_directory"
        )
    return Finding("ledger", "good", f"{directory}")


def guarded(look: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings, or one that says why there are none."""
    try:
        return look()
    except ConfigError as error:
        return [Finding("configuration", "bad", str(error), "scitags agent check")]
