"""Where pools send their fireflies: pool.firefly.destination, read as dCache reads it (Guava's HostAndPort)."""

from __future__ import annotations

import ipaddress

from scitags_core import firefly
from scitags_core.errors import InvalidValue, shown

PORT_MAX = 65535
LOOPBACK = "localhost"
AGENT = f"{LOOPBACK}:{firefly.PORT}"


def parse(text: str) -> tuple[str, int]:
    """Host and port of "host", "host:port", "[IPv6]", "[IPv6]:port" or a bare IPv6 address.

    Two colons without brackets make all of it an address, a port at its end included. Raises InvalidValue for what
    dCache refuses, or takes for a name that has no address.
    """
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidValue(f"{shown(text)} is not of the form [address]:port")
        return _address(host), _port(rest[1:], text)
    if text.count(":") > 1:
        return _address(text), firefly.PORT
    host, _, port = text.partition(":")
    if not host or len(host.split()) > 1:
        raise InvalidValue(f"{shown(text)} names no host")
    return host.lower(), _port(port, text)


def is_same(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether two destinations are the same; this host's loopback has many names."""
    return one == other or (one[1] == other[1] and _is_loopback(one[0]) and _is_loopback(other[0]))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidValue(f"{shown(text)} is no address; an IPv6 address with a port is [address]:port") from None


def _port(text: str, whole: str) -> int:
    if not text:
        return firefly.PORT
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= PORT_MAX:
        raise InvalidValue(f"{shown(whole)}: {shown(text)} is no port")
    return int(text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == LOOPBACK or host.startswith(f"{LOOPBACK}.")
