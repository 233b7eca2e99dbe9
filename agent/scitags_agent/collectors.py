"""Where fireflies go: collectors by name and port, and the name under which this agent sends."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from scitags_agent.outbox import pack_address
from scitags_core import firefly
from scitags_core.errors import ConfigError, shown
from scitags_core.flow import PORT_MAX

APPLICATION = "scitags-agent"


class Collector:
    """One collector by its name, and the address that the name had when it was last looked up.

    address is packed, where is as socket.socket takes it, with its family.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.host, self.port = split_host_port(text)
        self.address: bytes | None = None
        self.where: tuple[int, Any] | None = None

    async def resolve(self) -> None:
        """Look the name up; the last address stays when that fails. Raises OSError, UnicodeError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = found[0]
        self.where = family, address
        scope = address[3] if len(address) == 4 else 0  # noqa: PLR2004  (IPv6: address, port, flow, scope)
        self.address = pack_address(str(address[0]).partition("%")[0], int(address[1]), int(scope))


def split_host_port(text: str, default: int = firefly.PORT) -> tuple[str, int]:
    """Host and port of "host", "host:port", "[IPv6]:port" or a bare address. Raises ConfigError."""
    if is_address(text):
        return text, default
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= PORT_MAX or set(host) & set("[]"):
        raise ConfigError(f"{shown(text)} is no host:port or [IPv6]:port")
    return host, int(port)


def is_address(text: str) -> bool:
    """Whether the text is an IP address rather than a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
