"""What the kernel knows of a TCP connection: struct tcp_info, decoded whole.

Source: include/uapi/linux/tcp.h. The struct has only ever grown at its end, so that an older kernel gives less and
a newer one more; what it gives beyond the fields below is left unread.
"""

from __future__ import annotations

import struct
from functools import lru_cache

# Names as in the header, less "tcpi_"; in order. Before them come two octets of bit fields, see decode().
TCP_INFO_OCTETS = 512  # more than any kernel tells
_OCTETS = ("state", "ca_state", "retransmits", "probes", "backoff", "options")
_FIELDS = tuple(
    (name, code)
    for code, names in (
        ("I", "rto ato snd_mss rcv_mss unacked sacked lost retrans fackets"),
        ("I", "last_data_sent last_ack_sent last_data_recv last_ack_recv"),
        ("I", "pmtu rcv_ssthresh rtt rttvar snd_ssthresh snd_cwnd advmss reordering rcv_rtt rcv_space total_retrans"),
        ("Q", "pacing_rate max_pacing_rate bytes_acked bytes_received"),
        ("I", "segs_out segs_in notsent_bytes min_rtt data_segs_in data_segs_out"),
        ("Q", "delivery_rate busy_time rwnd_limited sndbuf_limited"),
        ("I", "delivered delivered_ce"),
        ("Q", "bytes_sent bytes_retrans"),
        ("I", "dsack_dups reord_seen rcv_ooopack snd_wnd rcv_wnd rehash"),
        ("H", "total_rto total_rto_recoveries"),
        ("I", "total_rto_time received_ce delivered_e1_bytes delivered_e0_bytes delivered_ce_bytes"),
        ("I", "received_e1_bytes received_e0_bytes received_ce_bytes"),
        ("H", "accecn_fail_mode accecn_opt_seen"),
    )
    for name in names.split()
)
_BITS_AT = 6
_FIRST = 8

CLOSE = 7
_FIN_RECEIVED = frozenset({6, CLOSE, 8, 9, 11})  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING


@lru_cache(maxsize=8)
def _layout(octets: int) -> tuple[tuple[str, ...], struct.Struct]:
    """The fields that are whole in a struct of that size, and how to read them."""
    names: list[str] = [*_OCTETS]
    codes = f"={len(_OCTETS)}B2x"
    for name, code in _FIELDS:
        if struct.calcsize(codes + code) > octets:
            break
        names.append(name)
        codes += code
    return tuple(names), struct.Struct(codes)


def decode(octets: bytes) -> dict[str, int]:
    """Every field by its name without "tcpi_". Empty for what is too short to be one.

    Units are the kernel's: times in microseconds, but last_* in milliseconds; rates in octets a second.
    """
    if len(octets) < _FIRST:
        return {}
    names, layout = _layout(len(octets))
    info = dict(zip(names, layout.unpack_from(octets), strict=True))
    scales, flags = octets[_BITS_AT], octets[_BITS_AT + 1]
    # Where C puts the first bit field of an octet depends on the byte order; every machine of ours is little-endian.
    info["snd_wscale"], info["rcv_wscale"] = scales & 0xF, scales >> 4
    info["delivery_rate_app_limited"], info["fastopen_client_fail"] = flags & 1, flags >> 1 & 3
    return info


def payload_sent(info: dict[str, int]) -> int:
    """Octets that were sent, each counted once however often it was retransmitted."""
    if "bytes_retrans" in info:
        return info["bytes_sent"] - info["bytes_retrans"]
    return info.get("bytes_acked", 0)  # before Linux 4.19; SYN and FIN count as an octet each there


def payload_received(info: dict[str, int]) -> int:
    """Octets that were received in order. Of a connection that ended by reset it may be one less than that."""
    octets = info.get("bytes_received", 0)
    # The kernel counts the peer's FIN as an octet, and does not say whether there was one when all is over.
    return octets - 1 if octets and info["state"] in _FIN_RECEIVED else octets
