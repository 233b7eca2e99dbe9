"""Datagrams in bulk, each sent once, whatever becomes of the process meanwhile.

Many go to the kernel in one call (sendmmsg(2)), outside the interpreter's lock. The kernel writes down the length of
each datagram as it is sent, into memory that is a mapped file here: after a kill the next agent finds those that
were not sent, and sends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from scitags_agent.mapped import MappedFile

BATCH = 1024  # datagrams; also what the kernel takes in one call (UIO_MAXIOV)
PAYLOAD_OCTETS = 1 << 20
SEND_BUFFER_OCTETS = 1 << 22
WAIT_SECONDS = 1.0

# struct mmsghdr of a 64-bit kernel, and the sizes of struct sockaddr_in6 (in room for more) and struct iovec.
_MESSAGE = struct.Struct("=QI4xQQQQi4xI4x")
_NAME_OCTETS = 32
_NAME_LENGTH = 28  # the kernel takes a longer one for IPv4
_IOVEC_OCTETS = 16
_SENT_AT = 14  # msg_len within struct mmsghdr, in words of 32 bits
_MESSAGE_WORDS = 16
_FAILED = 0xFFFFFFFF  # in its place: the kernel would not send it
# Both as long as the room for one.
_SOCKADDR_IPV4 = struct.Struct("=H2s4s24x")
_SOCKADDR_IPV6 = struct.Struct("=H2sI16sI4x")
_FAMILIES = (socket.AF_INET6, socket.AF_INET)  # in this order they stand in the file

# Words of the heading.
_COUNT, _COUNT_IPV6, _SERIAL = range(3)
_MESSAGES_AT = 4096
_NAMES_AT = _MESSAGES_AT + BATCH * _MESSAGE.size
_IOVECS_AT = _NAMES_AT + BATCH * _NAME_OCTETS
_PAYLOAD_AT = _IOVECS_AT + BATCH * _IOVEC_OCTETS
_OCTETS = _PAYLOAD_AT + PAYLOAD_OCTETS

Letters = tuple[list[bytes], list[bytes]]  # contents, and as many addresses


def pack_address(address: str, port: int, scope: int = 0) -> bytes:
    """A socket address as the kernel wants it. Raises OSError for what is no IP address."""
    in_order = port.to_bytes(2, "big")
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return _SOCKADDR_IPV6.pack(socket.AF_INET6, in_order, 0, packed, scope)
    return _SOCKADDR_IPV4.pack(socket.AF_INET, in_order, socket.inet_pton(socket.AF_INET, address))


def address_text(packed: bytes) -> str:
    """A packed address for people."""
    port = int.from_bytes(packed[2:4], "big")
    if int.from_bytes(packed[:2], sys.byteorder) == socket.AF_INET6:
        return f"[{socket.inet_ntop(socket.AF_INET6, packed[8:24])}]:{port}"
    return f"{socket.inet_ntop(socket.AF_INET, packed[4:8])}:{port}"


class Outbox:
    """Sends datagrams from sockets of both families, and counts."""

    def __init__(self, path: Path | None) -> None:
        """With a path, what is in work lies in that file; without, in one that nobody else finds. Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        if path is None:
            descriptor, name = tempfile.mkstemp(prefix="scitags-outbox-")
            os.close(descriptor)
            self._file = MappedFile(Path(name), _OCTETS)
            Path(name).unlink()
        else:
            self._file = MappedFile(path, _OCTETS)
        base = self._file.address
        self._messages_at = base + _MESSAGES_AT
        self._payload_at = base + _PAYLOAD_AT
        # All but the lengths is the same for every use of a place.
        self._template = b"".join(
            _MESSAGE.pack(
                base + _NAMES_AT + place * _NAME_OCTETS,
                _NAME_LENGTH,
                base + _IOVECS_AT + place * _IOVEC_OCTETS,
                1,
                0,
                0,
                0,
                0,
            )
            for place in range(BATCH)
        )
        self._sent_octets = self._file.octets[_MESSAGES_AT:_NAMES_AT].cast("I")
        self._sockets: dict[int, socket.socket] = {}
        self.sent = 0
        self.errors = 0
        self.failures: Counter[tuple[bytes, int]] = Counter()  # by address and errno, since they were last looked at

    def open(self, sources: Sequence[str] = ()) -> None:
        """Make the sockets; sources are addresses of this host to send from. Raises OSError."""
        for family in _FAMILIES:
            with contextlib.suppress(OSError):  # a host may have but one of the two
                sender = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_OCTETS)
                self._sockets[family] = sender
        if not self._sockets:
            raise OSError(errno.EAFNOSUPPORT, "this host has neither IPv4 nor IPv6 sockets")
        for source in sources:
            family = socket.AF_INET6 if ":" in source else socket.AF_INET
            if family not in self._sockets:
                raise OSError(errno.EAFNOSUPPORT, f"this host has no sockets for the source address {source}")
            self._sockets[family].bind((source, 0))

    def close(self) -> None:
        """Close the sockets; the file stays as it is."""
        for sender in self._sockets.values():
            sender.close()
        self._sockets.clear()
        self._sent_octets.release()
        self._file.close()

    def finish(self) -> int:
        """Send what an earlier agent was killed over. The serial up to which all is done; 0 where nothing ever was."""
        words = self._file.words
        count = min(words[_COUNT], BATCH)
        if count:
            done = self._sent_octets[_SENT_AT : count * _MESSAGE_WORDS : _MESSAGE_WORDS].tolist()
            lengths = self._file.octets[_IOVECS_AT:_PAYLOAD_AT].cast("Q")[1 : 2 * count : 2].tolist()
            self._lay_out(lengths)
            for place, octets in enumerate(done):
                self._sent_octets[place * _MESSAGE_WORDS + _SENT_AT] = octets
            self._send_all(count, min(words[_COUNT_IPV6], count), WAIT_SECONDS)
        return words[_SERIAL]

    def send(self, letters: Mapping[int, Letters], serial: int, *, wait: float = WAIT_SECONDS) -> bool:
        """Send up to BATCH datagrams of up to PAYLOAD_OCTETS, by address family; then all up to serial is done.

        wait is for how many seconds a full socket is waited for; what could not be sent by then is an error. With
        0 it is not waited for, and False says that the rest is still to be sent, by resume(). Only one thread at a
        time may call these.
        """
        contents: list[bytes] = []
        addresses: list[bytes] = []
        counts = []
        for family in _FAMILIES:
            found = letters.get(family, ([], []))
            contents += found[0]
            addresses += found[1]
            counts.append(len(found[0]))
        words, octets = self._file.words, self._file.octets
        payload, names = b"".join(contents), b"".join(addresses)
        octets[_PAYLOAD_AT : _PAYLOAD_AT + len(payload)] = payload
        octets[_NAMES_AT : _NAMES_AT + len(names)] = names
        self._lay_out(list(map(len, contents)))
        words[_COUNT_IPV6] = counts[0]
        # A kill between these two leaves the changes undone or the datagrams unsent, which is found and mended.
        words[_COUNT] = len(contents)
        words[_SERIAL] = serial
        return self._send_all(len(contents), counts[0], wait)

    def resume(self, *, wait: float = WAIT_SECONDS) -> None:
        """Send what the last send() left."""
        words = self._file.words
        self._send_all(words[_COUNT], words[_COUNT_IPV6], wait)

    def _lay_out(self, lengths: list[int]) -> None:
        """Fill in the kernel's structures for datagrams that lie one behind the other."""
        octets, count = self._file.octets, len(lengths)
        iovecs = array("Q", bytes(_IOVEC_OCTETS * count))
        iovecs[0::2] = array("Q", accumulate(lengths[:-1], initial=self._payload_at)) if lengths else array("Q")
        iovecs[1::2] = array("Q", lengths)
        octets[_IOVECS_AT : _IOVECS_AT + _IOVEC_OCTETS * count] = iovecs.tobytes()
        octets[_MESSAGES_AT : _MESSAGES_AT + _MESSAGE.size * count] = self._template[: _MESSAGE.size * count]

    def _send_all(self, count: int, count_ipv6: int, wait: float) -> bool:
        parts = ((socket.AF_INET6, 0, count_ipv6), (socket.AF_INET, count_ipv6, count))
        # All parts have their turn, also when one of them has to wait.
        complete = [self._send_part(family, first, end, wait) for family, first, end in parts]
        if not all(complete):
            return False
        self._file.words[_COUNT] = 0
        return True

    def _send_part(self, family: int, place: int, end: int, wait: float) -> bool:
        while place < end:
            if self._sent_octets[place * _MESSAGE_WORDS + _SENT_AT]:
                place += 1
                continue
            sent, error = self._call(family, place, end - place)
            self.sent += sent
            place += sent
            if error == errno.EAGAIN:
                if not wait:
                    return False
                if select.select([], [self._sockets[family]], [], wait)[1]:
                    continue
            if error:
                self._give_up(place, error)
                place += 1
        return True

    def _give_up(self, place: int, error: int) -> None:
        self._sent_octets[place * _MESSAGE_WORDS + _SENT_AT] = _FAILED
        self.errors += 1
        name = _NAMES_AT + place * _NAME_OCTETS
        self.failures[bytes(self._file.octets[name : name + _NAME_OCTETS]), error] += 1

    def _call(self, family: int, place: int, count: int) -> tuple[int, int]:
        """How many were sent, and when that is none, the errno."""
        sender = self._sockets.get(family)
        if sender is None:
            return 0, errno.EAFNOSUPPORT
        sent = self._libc.sendmmsg(
            sender.fileno(), ctypes.c_void_p(self._messages_at + place * _MESSAGE.size), count, socket.MSG_NOSIGNAL
        )
        return (sent, 0) if sent > 0 else (0, ctypes.get_errno())
