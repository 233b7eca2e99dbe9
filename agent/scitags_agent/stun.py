"""Which address the rest of the world sees instead of one of this host's: asked of a STUN server (RFC 8489)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct

from scitags_core.errors import PeerDataError

PORT = 3478
TRIES = 4
FIRST_WAIT_SECONDS = 0.5  # doubled for each try (section 6.2.1)
_COOKIE = 0x2112A442
_BINDING_REQUEST = 0x0001
_BINDING_SUCCESS = 0x0101
_XOR_MAPPED_ADDRESS = 0x0020
_HEADER = struct.Struct("!HHI12s")
_ATTRIBUTE = struct.Struct("!HH")
_FAMILIES = {1: 4, 2: 16}  # octets of an address


def binding_request(transaction: bytes) -> bytes:
    """A request without attributes; transaction is 12 random octets."""
    return _HEADER.pack(_BINDING_REQUEST, 0, _COOKIE, transaction)


def mapped_address(answer: bytes, transaction: bytes) -> str:
    """The address in the answer to a request. PeerDataError for what is no such answer."""
    if len(answer) < _HEADER.size:
        raise PeerDataError(f"a STUN answer of {len(answer)} octets is too short")
    kind, length, cookie, echoed = _HEADER.unpack_from(answer)
    if (kind, cookie, echoed) != (_BINDING_SUCCESS, _COOKIE, transaction):
        raise PeerDataError(f"a STUN message of type {kind:#06x} is no answer to our request")
    at, end = _HEADER.size, min(len(answer), _HEADER.size + length)
    while at + _ATTRIBUTE.size <= end:
        name, octets = _ATTRIBUTE.unpack_from(answer, at)
        value = answer[at + _ATTRIBUTE.size : at + _ATTRIBUTE.size + octets]
        if name == _XOR_MAPPED_ADDRESS:
            return _address(value, transaction)
        at += _ATTRIBUTE.size + (octets + 3 & ~3)
    raise PeerDataError("a STUN answer has no XOR-MAPPED-ADDRESS")


def _address(value: bytes, transaction: bytes) -> str:
    size = _FAMILIES.get(value[1] if len(value) > 1 else 0)
    if size is None or len(value) != 4 + size:
        raise PeerDataError(f"XOR-MAPPED-ADDRESS {value.hex()} in a STUN answer is malformed")
    mask = (_COOKIE.to_bytes(4, "big") + transaction)[:size]
    return str(ipaddress.ip_address(bytes(a ^ b for a, b in zip(value[4:], mask, strict=True))))


async def discover(host: str, port: int, family: socket.AddressFamily) -> tuple[str, str]:
    """Our own address towards the server, and the one that the server sees.

    Takes up to 7.5 seconds. Raises OSError (TimeoutError among them) and PeerDataError.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asker:
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
        asker.connect(found[0][4])
        transaction = os.urandom(12)
        for number in range(TRIES):
            asker.send(binding_request(transaction))
            try:
                answer = await asyncio.wait_for(loop.sock_recv(asker, 2048), FIRST_WAIT_SECONDS * 2**number)
            except TimeoutError:
                continue
            return asker.getsockname()[0], mapped_address(answer, transaction)
    raise TimeoutError(f"no answer from the STUN server {host} port {port}")
