"""What a reporter's objects beside the firefly say of a TCP connection: round-trip time and retransmissions.

Three shapes are in the field; where one stands and in what unit it counts is known from the daemons that write them:

    netlink.tcp_info                 flowd                      rtt in milliseconds, total_retrans in segments
    netlink                          flowd-go, "compatible"     the same names, without tcp_info around them
    netlink.tcpInfo, skOps.tcpInfo   flowd-go, "lean" and full  rtt in microseconds, totalRetrans in segments
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_MILLISECONDS = 1e-3
_MICROSECONDS = 1e-6
# Seconds. The kernel gives a connection up long before; whoever says more counts in another unit.
_RTT_BELOW = 120.0
# The kernel counts in 32 bits.
_RETRANSMISSIONS_BELOW = 1 << 32


class TcpFacts(msgspec.Struct, frozen=True):
    """What is known of a connection; None for what is not.

    rtt                smoothed round-trip time, in seconds, above 0 and below 120
    retransmissions    segments sent again since the connection began
    """

    rtt: float | None = None
    retransmissions: int | None = None


NOTHING = TcpFacts()


def tcp_facts(extra: Mapping[str, Any]) -> TcpFacts:
    """The facts in the further objects of an event, whatever else a peer has put there."""
    for name in ("netlink", "skOps"):
        report = extra.get(name)
        if not isinstance(report, Mapping):
            continue
        if isinstance(tcp_info := report.get("tcpInfo"), Mapping):
            return _facts(tcp_info, "rtt", _MICROSECONDS, "totalRetrans")
        tcp_info = report.get("tcp_info", report)
        if isinstance(tcp_info, Mapping):
            return _facts(tcp_info, "rtt", _MILLISECONDS, "total_retrans")
    return NOTHING


def _facts(report: Mapping[str, Any], rtt_name: str, unit: float, retransmissions_name: str) -> TcpFacts:
    rtt, retransmissions = _number(report.get(rtt_name)) * unit, _number(report.get(retransmissions_name, -1))
    return TcpFacts(
        rtt if 0 < rtt < _RTT_BELOW else None,
        int(retransmissions) if 0 <= retransmissions < _RETRANSMISSIONS_BELOW else None,
    )


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else -1
