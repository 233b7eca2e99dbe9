"""The network interfaces of this thread's network namespace, and which of them are meant."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from scitags_agent.rtnetlink import RouteSocket
from scitags_core.errors import ConfigError, shown

SIOCGIFHWADDR = 0x8927
GLOBAL = "global-ipv6"
ROUTE = "route:"
_UNUSABLE = 0x0200 | 0x01000000  # RTF_REJECT, RTF_CACHE
_IFREQ = struct.Struct("16sH22x")

# ARPHRD types (linux/if_arp.h).
ETHERNET = 1
LOOPBACK = 772
_WITH_ETHERNET_HEADER = frozenset({ETHERNET, LOOPBACK})
# PPP, raw IP, IP-in-IP tunnels, SIT, GRE, GRE over IPv6, and "none" (tun, wireguard).
_WITHOUT_HEADER = frozenset({512, 519, 768, 769, 776, 778, 823, 0xFFFE})
# Of a bridge, which also passes on what others send, the ports count.
_BONDS = frozenset({"bond", "team"})


class Interface(msgspec.Struct, frozen=True):
    """An interface by index and name; ethernet tells whether its packets have an Ethernet header.

    namespace is the number of the network namespace that it is in (scitags_agent.namespaces); 0 for the agent's own.
    """

    index: int
    name: str
    ethernet: bool
    namespace: int = 0


def check_pattern(pattern: str) -> None:
    """Raises ConfigError for a route to what is no network."""
    if pattern.startswith(ROUTE):
        _destination(pattern)


def matching(patterns: Sequence[str], namespace: int = 0) -> list[Interface]:
    """The interfaces whose names match one of the patterns (as in a shell), or that they describe.

    "global-ipv6" are those with a global IPv6 address, "route:ADDRESS" or "route:NETWORK" is the one by which packets
    go there. A loopback is matched only by its very name, and an interface of another link layer never. A port of a
    bond or a team is left out unless it is named: what leaves by it has left by the bond before. namespace is only
    noted.
    """
    described: set[str] = set()
    for pattern in patterns:
        if pattern == GLOBAL:
            described |= _with_global_addresses()
        elif pattern.startswith(ROUTE):
            described |= _on_route(_destination(pattern))
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as query:
        for index, name in socket.if_nameindex():
            kind = _hardware_type(query, name)
            wanted = (
                name in patterns
                or name in described
                or (kind != LOOPBACK and any(fnmatchcase(name, pattern) for pattern in patterns))
            )
            if wanted and kind in _WITH_ETHERNET_HEADER | _WITHOUT_HEADER:
                found.append(Interface(index, name, kind in _WITH_ETHERNET_HEADER, namespace))
    ports = _ports_of_bonds({one.index for one in found})
    return [one for one in found if one.index not in ports or one.name in patterns]


def _ports_of_bonds(among: Collection[int]) -> set[int]:
    """Of these interfaces, those that are ports of a bond which is among them too."""
    try:
        with RouteSocket() as asked:
            links = asked.links()
    except OSError:
        return set()
    bonds = {one.index for one in links if one.kind in _BONDS and one.index in among}
    return {one.index for one in links if one.master in bonds}


def _with_global_addresses() -> set[str]:
    lines = [line.split() for line in _lines("if_inet6")]
    return {name for *_, scope, _flags, name in lines if scope == "00"}


def _on_route(destination: ipaddress.IPv6Network) -> set[str]:
    """The interface of the most specific route of the main table (policy rules are not looked at)."""
    best: tuple[int, int, str] | None = None
    for line in _lines("ipv6_route"):
        fields = line.split()
        network, prefix, metric, flags, name = fields[0], int(fields[1], 16), fields[5], int(fields[8], 16), fields[9]
        if flags & _UNUSABLE or name == "lo" or prefix > destination.prefixlen:
            continue
        shift = 128 - prefix
        if int(network, 16) >> shift == int(destination.network_address) >> shift:
            candidate = (-prefix, int(metric, 16), name)
            best = candidate if best is None else min(best, candidate)
    return {best[2]} if best is not None else set()


def _destination(pattern: str) -> ipaddress.IPv6Network:
    text = pattern.removeprefix(ROUTE)
    try:
        return ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        raise ConfigError(f"interfaces: {shown(text)} is no IPv6 address or network") from None


def _lines(name: str) -> list[str]:
    """Of a file in which the kernel shows this thread's network namespace."""
    try:
        return Path("/proc/thread-self/net", name).read_text(encoding="ascii").splitlines()
    except OSError:  # a kernel without IPv6
        return []


def _hardware_type(query: socket.socket, name: str) -> int:
    """The ARPHRD type; 0 for an interface that went away meanwhile."""
    try:
        answer = fcntl.ioctl(query, SIOCGIFHWADDR, _IFREQ.pack(name.encode(), 0))
    except OSError:
        return 0
    return int(_IFREQ.unpack(answer)[1])
