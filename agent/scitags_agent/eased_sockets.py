"""Open connections whose route is about to say less than their segments are long.

Until it has sent something by the new route, a connection cuts its segments as before. The kernel refuses full ones
meanwhile, and a connection that was idle then sends nothing for 0.2 seconds (seen with Linux 6.18). Told to leave the
path MTU to the application (IPV6_PMTUDISC_PROBE), it lets them pass: they are no longer than the interface allows, and
leave without a header of ours. The next are as long as the route says, and the socket is given back what it had before.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress

from scitags_agent.inet_diag import SockDiagError
from scitags_agent.socket_headers import IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE, SocketHeaders
from scitags_agent.tcp_info import TCP_INFO_OCTETS, decode
from scitags_core.flow import FlowKey


class EasedSockets:
    """To be used in one thread at a time, as the sockets that it asks for."""

    def __init__(self, sockets: SocketHeaders) -> None:
        self._sockets = sockets
        self._before: dict[FlowKey, int] = {}

    @property
    def keys(self) -> tuple[FlowKey, ...]:
        """Whose have not been given back yet."""
        return tuple(self._before)

    def ease(self, keys: Iterable[FlowKey]) -> None:
        """Before their routes change. What has no socket here, or one out of reach, is passed over."""
        self._sockets.begin()
        for key in keys:
            with suppress(OSError):
                for one in self._sockets.opened(key):
                    before = one.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
                    if one.type == socket.SOCK_STREAM and before < IPV6_PMTUDISC_PROBE:
                        one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
                        self._before[key] = before

    def give_back(self, reserved: Mapping[FlowKey, int]) -> None:
        """What they had before, to those that go by what is reserved for them, and to those with nothing reserved."""
        if self._before:
            self._sockets.begin()
        for key in self.keys:
            try:
                if not self._give_back(key, reserved.get(key, 0)):
                    continue
            except SockDiagError:
                continue  # it is tried again
            except OSError:
                pass  # closed, or in other hands
            del self._before[key]

    def _give_back(self, key: FlowKey, reserved: int) -> bool:
        for one in self._sockets.opened(key):
            info = decode(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_OCTETS))
            if reserved and info["pmtu"] > reserved:
                return False
            if one.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) == IPV6_PMTUDISC_PROBE:
                one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, self._before[key])
        return True
