"""Messages of NetFlow v9, IPFIX and sFlow v5, made by hand after their specifications."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

SOURCE, DESTINATION = "2001:db8::1", "2001:db8::2"
SECONDS = 1_795_485_600

Field = tuple[int, int] | tuple[int, int, int]  # element, octets, enterprise
# Addresses, ports, protocol, label, octets, packets, first and last in milliseconds.
IPV6_FLOW: list[Field] = [(27, 16), (28, 16), (7, 2), (11, 2), (4, 1), (31, 4), (1, 8), (2, 8), (152, 8), (153, 8)]


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def flow(
    label: int, *, packets: int = 10, octets: int = 10_000, port: int = 4001, first: int = 0, last: int = 0
) -> bytes:
    """A record of IPV6_FLOW; times are milliseconds after SECONDS."""
    values = struct.pack(
        "!HHBIQQQQ", port, 1094, 6, label, octets, packets, SECONDS * 1000 + first, SECONDS * 1000 + last
    )
    return packed(SOURCE) + packed(DESTINATION) + values


def fields(of: Sequence[Field]) -> bytes:
    return b"".join(
        struct.pack("!HHI", one[0] | 0x8000, one[1], one[2]) if len(one) == 3 else struct.pack("!HH", *one)
        for one in of
    )


def set_of(number: int, content: bytes) -> bytes:
    return struct.pack("!HH", number, 4 + len(content)) + content


def template(number: int, of: Sequence[Field], *, set_number: int = 2) -> bytes:
    return set_of(set_number, struct.pack("!HH", number, len(of)) + fields(of))


def options_template(number: int, scopes: Sequence[Field], of: Sequence[Field]) -> bytes:
    """Of IPFIX."""
    head = struct.pack("!HHH", number, len(scopes) + len(of), len(scopes))
    return set_of(3, head + fields(scopes) + fields(of))


def options_template_v9(number: int, scopes: Sequence[Field], of: Sequence[Field]) -> bytes:
    head = struct.pack("!HHH", number, 4 * len(scopes), 4 * len(of))
    return set_of(1, head + fields(scopes) + fields(of))


def ipfix(*sets: bytes, sequence: int = 0, domain: int = 1) -> bytes:
    body = b"".join(sets)
    return struct.pack("!HHIII", 10, 16 + len(body), SECONDS, sequence, domain) + body


def v9(*sets: bytes, sequence: int = 0, domain: int = 1, uptime: int = 60_000) -> bytes:
    return struct.pack("!HHIIII", 9, len(sets), uptime, SECONDS, sequence, domain) + b"".join(sets)


def sflow(*samples: bytes, sequence: int = 1, agent: str = "192.0.2.1", sub_agent: int = 0) -> bytes:
    address = packed(agent)
    head = struct.pack("!II", 5, 1 if len(address) == 4 else 2) + address
    return head + struct.pack("!IIII", sub_agent, sequence, 1000, len(samples)) + b"".join(samples)


def part(kind: int, content: bytes) -> bytes:
    content += bytes(-len(content) % 4)
    return struct.pack("!II", kind, len(content)) + content


def flow_sample(*records: bytes, rate: int = 1000) -> bytes:
    return part(1, struct.pack("!8I", 1, 2, rate, 5000, 0, 1, 2, len(records)) + b"".join(records))


def expanded_flow_sample(*records: bytes, rate: int = 1000) -> bytes:
    return part(3, struct.pack("!11I", 1, 0, 2, rate, 5000, 0, 0, 1, 0, 2, len(records)) + b"".join(records))


def raw_header(frame: bytes, *, protocol: int = 1, captured: int = 128) -> bytes:
    header = frame[:captured]
    return part(1, struct.pack("!IIII", protocol, len(frame) + 4, 4, len(header)) + header)
