"""Which address the rest of the world sees instead of one of this host's: asked of a STUN server (RFC 8489)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct

from scitags_core.errors import PeerDataError, shown

PORT = 3478
TRIES = 4
FIRST_WAIT_SECONDS = 0.5  # doubled for each try (section 6.2.1)
_COOKIE = 0x2112A442
_BINDING_REQUEST = 0x0001
_BINDING_SUCCESS = 0x0101
_BINDING_ERROR = 0x0111
_ERROR_CODE = 0x0009
_XOR_MAPPED_ADDRESS = 0x0020
_HEADER = struct.Struct("!HHI12s")
_ATTRIBUTE = struct.Struct("!HH")
_REASON_AT = 4  # in ERROR-CODE, behind class and number (section 14.8)
_FAMILIES = {1: 4, 2: 16}  # octets of an address


def binding_request(transaction: bytes) -> bytes:
    """A request without attributes; transaction is 12 random octets."""
    return _HEADER.pack(_BINDING_REQUEST, 0, _COOKIE, transaction)


def is_answer(message: bytes, transaction: bytes) -> bool:
    """Whether a datagram answers our request; any other is to be passed over (section 6.3)."""
    if len(message) < _HEADER.size:
        return False
    kind, _, cookie, echoed = _HEADER.unpack_from(message)
    return kind in (_BINDING_SUCCESS, _BINDING_ERROR) and (cookie, echoed) == (_COOKIE, transaction)


def mapped_address(answer: bytes, transaction: bytes) -> str:
    """The address in the answer to a request. PeerDataError for what is none, and for the refusal of a server."""
    if not is_answer(answer, transaction):
        raise PeerDataError(f"a STUN message {answer[: _HEADER.size].hex()} is no answer to our request")
    kind, length, _, _ = _HEADER.unpack_from(answer)
    at, end = _HEADER.size, min(len(answer), _HEADER.size + length)
    while at + _ATTRIBUTE.size <= end:
        name, octets = _ATTRIBUTE.unpack_from(answer, at)
        value = answer[at + _ATTRIBUTE.size : at + _ATTRIBUTE.size + octets]
        if kind == _BINDING_SUCCESS and name == _XOR_MAPPED_ADDRESS:
            return _address(value, transaction)
        if kind == _BINDING_ERROR and name == _ERROR_CODE and len(value) >= _REASON_AT:
            reason = value[_REASON_AT:].decode("utf-8", "replace")
            raise PeerDataError(f"the STUN server refuses: {(value[2] & 7) * 100 + value[3]} {shown(reason)}")
        at += _ATTRIBUTE.size + (octets + 3 & ~3)
    missing = "XOR-MAPPED-ADDRESS" if kind == _BINDING_SUCCESS else "ERROR-CODE"
    raise PeerDataError(f"a STUN answer of type {kind:#06x} has no {missing}")


def _address(value: bytes, transaction: bytes) -> str:
    size = _FAMILIES.get(value[1] if len(value) > 1 else 0)
    if size is None or len(value) != 4 + size:
        raise PeerDataError(f"XOR-MAPPED-ADDRESS {value.hex()} in a STUN answer is malformed")
    mask = (_COOKIE.to_bytes(4, "big") + transaction)[:size]
    return str(ipaddress.ip_address(bytes(a ^ b for a, b in zip(value[4:], mask, strict=True))))


async def discover(host: str, port: int, family: socket.AddressFamily) -> tuple[str, str]:
    """Our own address towards the server, and the one that the server sees.

    Takes up to 7.5 seconds. Raises OSError (TimeoutError among them), UnicodeError for what is no name of a host, and
    PeerDataError.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asker:
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
        asker.connect(found[0][4])
        transaction = os.urandom(12)
        for number in range(TRIES):
            asker.send(binding_request(transaction))
            try:
                async with asyncio.timeout(FIRST_WAIT_SECONDS * 2**number):
                    return asker.getsockname()[0], mapped_address(await _answer(asker, transaction), transaction)
            except TimeoutError:
                continue
    raise TimeoutError(f"no answer from the STUN server {host} port {port}")


async def _answer(asker: socket.socket, transaction: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    while not is_answer(message := await loop.sock_recv(asker, 2048), transaction):
        pass
    return message
