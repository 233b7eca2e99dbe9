"""The object "netlink" of a firefly: what the kernel knows of a socket, in the shapes that the field reads.

    lean    flowd-go's default: eleven values of tcp_info, in the kernel's units, and the congestion control.
            Fits a firefly of 1232 octets
    full    flowd-go's: all of tcp_info, the socket, its memory. About 2000 octets
    flowd   flowd's: all of tcp_info with times in milliseconds, the ends, memory. About 1500 octets

Two things are given right that the peers give wrong: flowd and flowd-go swap the window scales; flowd calls backoff
"null". The firefly backend leaves the object out of a firefly that would otherwise be longer than its max_octets.

Source: the behaviour of flowd 1.1.7 and flowd-go 2.4; the schema of fireflies wants an object, no more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from scitags_agent.inet_diag import (
    BBRINFO,
    CONG,
    DCTCPINFO,
    INFO,
    MEMINFO,
    MESSAGE_AT,
    SKMEMINFO,
    TOS,
    VEGASINFO,
    Connection,
)
from scitags_agent.tcp_info import decode

Shape = Literal["lean", "full", "flowd"]
Attributes = Mapping[int, bytes]

_LEAN = {
    "retransmits": "Retransmits",
    "snd_mss": "sndMss",
    "pmtu": "pMtu",
    "rtt": "rtt",
    "rttvar": "rttVar",
    "snd_ssthresh": "sndSsThresh",
    "snd_cwnd": "sndCwnd",
    "advmss": "advMss",
    "min_rtt": "minRtt",
    "delivery_rate": "deliveryRate",
    "bytes_sent": "bytesSent",
}
# Names that do not follow from the kernel's by the rule in _camel.
_FULL_EXCEPTIONS = {
    "rcv_wscale": "rcvdWscale",
    "fastopen_client_fail": "fastOpenClientFail",
    "unacked": "unAcked",
    "sacked": "sAcked",
    "fackets": "fAckets",
    "pmtu": "pMtu",
    "rcv_ssthresh": "rcvSsThresh",
    "rttvar": "rttVar",
    "snd_ssthresh": "sndSsThresh",
    "advmss": "advMss",
    "bytes_received": "bytesRecv",
    "sndbuf_limited": "sndBufLimited",
    "dsack_dups": "dsAckDups",
    "rcv_ooopack": "rcvOooPack",
}
# inet_diag_msg with its addresses, ports and cookie as the words that flowd-go reads them as.
_SOCKET = struct.Struct("=4B2H4I4II2I5I")
_WORDS = struct.Struct("=4I")
_NINE_WORDS = struct.Struct("=9I")
_DCTCP = struct.Struct("=2H3I")
_BBR = struct.Struct("=5I")
_VEGAS = ("enabled", "rttCount", "rtt", "minRtt")
_DCTCP_NAMES = ("enabled", "ceState", "alpha", "abeCn", "abTot")
_MEMORY = ("rMem", "wMem", "fMem", "tMem")
_SOCKET_MEMORY = (
    "rMemAlloc", "rcvBuff", "WMemAlloc", "sndBuff", "fwdAlloc", "wMemQueued", "optMem", "backlog", "drops"
)  # fmt: skip

# What flowd calls the states of a socket, by the kernel's number.
_STATES = (
    "unknown", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "unconnected",
    "close-wait", "last-ack", "listening", "closing",
)  # fmt: skip
_OPTIONS = {1: "ts", 2: "sack", 8: "ecn"}
_IN_MILLISECONDS = ("rto", "ato", "rtt", "rttvar", "rcv_rtt")
_RTO_NOT_MEASURED = 3_000_000  # microseconds: TCP_TIMEOUT_FALLBACK
_SSTHRESH_UNLIMITED = 0xFFFF  # at and above: no threshold yet, as flowd sees it


def lean(_connection: Connection, attributes: Attributes) -> dict[str, Any]:
    """flowd-go's default; empty for UDP."""
    info = decode(attributes.get(INFO, b""))
    found: dict[str, Any] = {}
    if info:
        found["tcpInfo"] = {theirs: info.get(ours, 0) for ours, theirs in _LEAN.items()}
    return found | _congestion(attributes)


def full(connection: Connection, attributes: Attributes) -> dict[str, Any]:
    """flowd-go's with everything. Ports and addresses are words in network order, as there."""
    info = decode(attributes.get(INFO, b""))
    found: dict[str, Any] = {}
    if info:
        found["tcpInfo"] = {_camel(name): value for name, value in info.items()}
    found |= _congestion(attributes)
    if connection.message:
        found["skBuff"] = _socket(connection)
    if len(octets := attributes.get(BBRINFO, b"")) >= _BBR.size:
        low, high, min_rtt, pacing, window = _BBR.unpack_from(octets)
        found["bbr"] = {"bbrBW": high << 32 | low, "bbrMinRTT": min_rtt, "bbrPacingGain": pacing, "bbrCwndGain": window}
    if octets := attributes.get(TOS, b""):
        found["tos"] = {"tos": octets[0]}
    if len(octets := attributes.get(MEMINFO, b"")) >= _WORDS.size:
        found["memInfo"] = dict(zip(_MEMORY, _WORDS.unpack_from(octets), strict=True))
    if len(octets := attributes.get(SKMEMINFO, b"")) >= _NINE_WORDS.size:
        found["skMemInfo"] = dict(zip(_SOCKET_MEMORY, _NINE_WORDS.unpack_from(octets), strict=True))
    if len(octets := attributes.get(VEGASINFO, b"")) >= _WORDS.size:
        found["vegasInfo"] = dict(zip(_VEGAS, _WORDS.unpack_from(octets), strict=True))
    if len(octets := attributes.get(DCTCPINFO, b"")) >= _DCTCP.size:
        found["dctcpInfo"] = dict(zip(_DCTCP_NAMES, _DCTCP.unpack_from(octets), strict=True))
    return found


def flowd(connection: Connection, attributes: Attributes) -> dict[str, Any]:
    """flowd's. What was not measured yet (rto, snd_ssthresh) is null, as there."""
    found: dict[str, Any] = {
        "src": connection.local,
        "dst": connection.remote,
        "src_port": connection.local_port,
        "dst_port": connection.remote_port,
        "inode": connection.inode,
    }
    if connection.message:
        socket = _SOCKET.unpack_from(connection.message, MESSAGE_AT)
        found |= {"iface_idx": socket[14], "retrans": socket[3]}
    if len(octets := attributes.get(MEMINFO, b"")) >= _WORDS.size:
        found["meminfo"] = dict(zip("rwft", _WORDS.unpack_from(octets), strict=True))
    if algorithm := congestion_control(attributes):
        found["cong_algo"] = algorithm
    if info := decode(attributes.get(INFO, b"")):
        found["tcp_info"] = _as_flowd_refines(info)
    return found


SHAPES: dict[Shape, Callable[[Connection, Attributes], dict[str, Any]]] = {"lean": lean, "full": full, "flowd": flowd}


def congestion_control(attributes: Attributes) -> str:
    """The name of the algorithm, such as "cubic"; empty for UDP."""
    return attributes.get(CONG, b"").rstrip(b"\0").decode("ascii", "replace")


def _congestion(attributes: Attributes) -> dict[str, Any]:
    algorithm = congestion_control(attributes)
    return {"cong": {"algorithm": algorithm}} if algorithm else {}


@cache
def _camel(name: str) -> str:
    if name in _FULL_EXCEPTIONS:
        return _FULL_EXCEPTIONS[name]
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _socket(connection: Connection) -> dict[str, Any]:
    family, state, timer, retrans, near_port, far_port, *words = _SOCKET.unpack_from(connection.message, MESSAGE_AT)
    near, far, (interface, *cookie), (expires, rqueue, wqueue) = words[:4], words[4:8], words[8:11], words[11:14]
    return {
        "family": family,
        "state": state,
        "timer": timer,
        "retrans": retrans,
        "id": {
            "srcPort": near_port,
            "dstPort": far_port,
            "srcIP": near,
            "dstIP": far,
            "ifId": interface,
            "cookie": cookie,
        },
        "expires": expires,
        "rQueue": rqueue,
        "wQueue": wqueue,
        # Not the message's: a socket that is gone tells neither any more.
        "uid": connection.uid,
        "iNode": connection.inode,
    }


def _as_flowd_refines(info: Mapping[str, int]) -> dict[str, Any]:
    refined: dict[str, Any] = dict(info)
    for name in _IN_MILLISECONDS:
        refined[name] = info[name] / 1000
    if info["rto"] == _RTO_NOT_MEASURED:
        refined["rto"] = None
    if info["snd_ssthresh"] >= _SSTHRESH_UNLIMITED:
        refined["snd_ssthresh"] = None
    refined["state"] = _STATES[info["state"]] if info["state"] < len(_STATES) else _STATES[0]
    refined["opts"] = [name for bit, name in _OPTIONS.items() if info["options"] & bit]
    del refined["options"]
    return refined
