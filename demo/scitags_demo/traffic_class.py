"""Whether DSCP and ECN came through as the storages and their kernels set them. Pure.

They share a 32-bit word with the flow label, and a marker that is careless about that word takes some of their bits.
"""

from __future__ import annotations

from scitags_demo.observer import Flow
from scitags_demo.service import Record

_ECN_BITS = 2
_ECN_CAPABLE = 0b11  # ECT(0), ECT(1) or CE: what a kernel puts on data once ECN is agreed on (RFC 3168)
# The answer to a connection request comes from the listening socket, which nobody has asked for a DSCP.
_FROM_LISTENER = 1


def problem(record: Record, flow: Flow) -> str | None:
    """What is wrong with the traffic classes of one direction of a connection over IPv6; None when nothing is."""
    connection, key = record.connection, flow.key
    assert key is not None
    from_server = key.src_port == connection.server_port
    other = {value: packets for value, packets in flow.traffic_classes.items() if value >> _ECN_BITS != connection.dscp}
    spare = _FROM_LISTENER if from_server and not record.retransmitted else 0
    if from_server and record.retransmitted:
        spare = other.get(0, 0)  # the answer may have been sent again
    wrong = sum(other.values()) - min(spare, other.get(0, 0))
    if wrong:
        return f"{wrong} of {flow.packets} packets of {key} do not bear its DSCP {connection.dscp}"
    if key == record.key and not ecn_capable(flow):
        return f"no packet of {key} says that its hosts agreed on ECN"
    return None


def ecn_capable(flow: Flow) -> int:
    """How many packets say that they may be marked instead of dropped."""
    return sum(packets for value, packets in flow.traffic_classes.items() if value & _ECN_CAPABLE)
