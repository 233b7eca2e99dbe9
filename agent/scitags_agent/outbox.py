"""Datagrams in bulk, each sent once, whatever becomes of the process meanwhile.

Many go to the kernel in one call (sendmmsg(2)), outside the interpreter's lock, and those of one length to one address
as one message that the kernel cuts up (UDP_SEGMENT, Linux 4.18), which costs a fifth. The kernel writes down the length
of each message as it is sent, into memory that is a mapped file here: after a kill the next agent finds those that were
not sent, and sends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scitags_agent.mapped import MappedFile

MESSAGES = 2048
SEGMENTS = 64  # datagrams in a message: what every kernel with UDP_SEGMENT takes
WORTH_SEGMENTING = 8
PAYLOAD_OCTETS = 2 << 20
SEND_BUFFER_OCTETS = 1 << 22
WAIT_SECONDS = 1.0
_SEGMENTED_OCTETS = 60_000  # of one message; with its headers it must be a datagram itself
_UDP_SEGMENT = 103
_NOT_SEGMENTED = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT)

# struct mmsghdr of a 64-bit kernel; room for a struct sockaddr_in6, a struct iovec, a control message.
_MESSAGE = struct.Struct("=QI4xQQQQi4xI4x")
_NAME_OCTETS = 32
_NAME_LENGTH = 28  # the kernel takes a longer one for IPv4
_IOVEC = struct.Struct("=QQ")
_CONTROL = struct.Struct("=QiiH6x")
_CONTROL_LENGTH = 18
_SENT_AT = 14  # msg_len within struct mmsghdr, in words of 32 bits
_MESSAGE_WORDS = _MESSAGE.size // 4
_FAILED = 0xFFFFFFFF  # in its place: the kernel would not send it
# Both as long as the room for one.
_SOCKADDR_IPV4 = struct.Struct("=H2s4s24x")
_SOCKADDR_IPV6 = struct.Struct("=H2sI16sI4x")
_FAMILIES = (socket.AF_INET6, socket.AF_INET)  # in this order they stand in the file

# Words of the heading.
_COUNT, _COUNT_IPV6, _SERIAL = range(3)
# Of each message: where its octets begin in the payload, how many they are, how many make a datagram.
_PARTS_AT = 4096
_PART = struct.Struct("=QII")
_MESSAGES_AT = _PARTS_AT + MESSAGES * _PART.size
_NAMES_AT = _MESSAGES_AT + MESSAGES * _MESSAGE.size
_IOVECS_AT = _NAMES_AT + MESSAGES * _NAME_OCTETS
_CONTROLS_AT = _IOVECS_AT + MESSAGES * _IOVEC.size
_PAYLOAD_AT = _CONTROLS_AT + MESSAGES * _CONTROL.size
_OCTETS = _PAYLOAD_AT + PAYLOAD_OCTETS


def pack_address(address: str, port: int, scope: int = 0) -> bytes:
    """A socket address as the kernel wants it. Raises OSError for what is no IP address."""
    in_order = port.to_bytes(2, "big")
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return _SOCKADDR_IPV6.pack(socket.AF_INET6, in_order, 0, packed, scope)
    return _SOCKADDR_IPV4.pack(socket.AF_INET, in_order, socket.inet_pton(socket.AF_INET, address))


def unpack_address(packed: bytes) -> tuple[str, int, int]:
    """Address, port and scope of what pack_address() made."""
    port = int.from_bytes(packed[2:4], "big")
    if _family(packed) == socket.AF_INET6:
        scope = int.from_bytes(packed[24:28], sys.byteorder)
        return socket.inet_ntop(socket.AF_INET6, packed[8:24]), port, scope
    return socket.inet_ntop(socket.AF_INET, packed[4:8]), port, 0


def _family(packed: bytes) -> int:
    return int.from_bytes(packed[:2], sys.byteorder)


class Outbox:
    """Sends datagrams from sockets of both families, and counts."""

    def __init__(self, path: Path | None) -> None:
        """With a path, what is in work lies in that file; without, in this process. Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        if path is None:
            self._file = MappedFile(None, _OCTETS)
        else:
            self._file = MappedFile(path, _OCTETS)
        self._base = self._file.address
        self._sent_octets = self._file.octets[_MESSAGES_AT:_NAMES_AT].cast("I")
        self._sockets: dict[int, socket.socket] = {}
        self._segments = True  # until a kernel or a device proves otherwise
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
            try:
                self._sockets[family].bind((source, 0))
            except OSError as error:
                raise OSError(error.errno, f"source {source}: {error.strerror}") from None

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
        count = min(words[_COUNT], MESSAGES)
        if count:
            done = self._sent_octets[_SENT_AT : count * _MESSAGE_WORDS : _MESSAGE_WORDS].tolist()
            # The addresses of memory are another process's.
            self._lay_out([self._part(place) for place in range(count)])
            for place, octets in enumerate(done):
                self._sent_octets[place * _MESSAGE_WORDS + _SENT_AT] = octets
            self._send_all(count, min(words[_COUNT_IPV6], count), WAIT_SECONDS)
        return words[_SERIAL]

    def post(
        self, letters: Sequence[tuple[bytes, bytes]], circular: Sequence[bytes], receivers: Sequence[bytes], serial: int
    ) -> None:
        """Take datagrams that will be sent whatever happens. With them, all up to serial is done.

        letters are pairs of content and address; each of circular goes to each receiver. What was posted before must
        have been sent. There is room for MESSAGES and PAYLOAD_OCTETS. A circular that is shorter than its neighbours
        is filled up with blanks, which mean nothing behind a JSON object.
        """
        parts: list[tuple[int, int, int]] = []
        pieces: list[bytes] = []
        begins = 0
        for first in range(0, len(circular), SEGMENTS):
            chunk = circular[first : first + SEGMENTS]
            size = max(map(len, chunk))
            if not self._segments or len(chunk) < WORTH_SEGMENTING or size * len(chunk) > _SEGMENTED_OCTETS:
                for one in chunk:
                    parts.append((begins, len(one), len(one)))
                    begins += len(one)
                pieces += chunk
                continue
            filled = b"".join([one.ljust(size) for one in chunk])
            pieces.append(filled)
            parts.append((begins, len(filled), size))
            begins += len(filled)
        by_family: dict[int, list[tuple[bytes, tuple[int, int, int]]]] = {family: [] for family in _FAMILIES}
        for receiver in receivers:
            by_family[_family(receiver)] += [(receiver, part) for part in parts]
        for content, address in letters:
            by_family[_family(address)].append((address, (begins, len(content), len(content))))
            pieces.append(content)
            begins += len(content)
        messages = [message for family in _FAMILIES for message in by_family[family]]
        octets, words = self._file.octets, self._file.words
        payload, names = b"".join(pieces), b"".join([address for address, _ in messages])
        octets[_PAYLOAD_AT : _PAYLOAD_AT + len(payload)] = payload
        octets[_NAMES_AT : _NAMES_AT + len(names)] = names
        self._lay_out([part for _, part in messages])
        words[_COUNT_IPV6] = len(by_family[socket.AF_INET6])
        # A kill between these two leaves the changes undone or the datagrams unsent, which is found and mended.
        words[_COUNT] = len(messages)
        words[_SERIAL] = serial

    def send(self, *, wait: float = WAIT_SECONDS) -> bool:
        """Send what was posted. May be called by another thread, by one at a time.

        wait is for how many seconds a full socket is waited for; what could not be sent by then is an error. With
        0 it is not waited for, and False says that some is still to be sent.
        """
        words = self._file.words
        return self._send_all(words[_COUNT], words[_COUNT_IPV6], wait)

    def _lay_out(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Fill in the kernel's structures for messages whose payload and addresses are there."""
        names, iovecs, controls = (self._base + at for at in (_NAMES_AT, _IOVECS_AT, _CONTROLS_AT))
        payload = self._base + _PAYLOAD_AT
        heads = b"".join(
            [
                _MESSAGE.pack(
                    names + place * _NAME_OCTETS,
                    _NAME_LENGTH,
                    iovecs + place * _IOVEC.size,
                    1,
                    controls + place * _CONTROL.size if octets > size else 0,
                    _CONTROL.size if octets > size else 0,
                    0,
                    0,
                )
                for place, (_, octets, size) in enumerate(parts)
            ]
        )
        for at, content in (
            (_PARTS_AT, b"".join([_PART.pack(*part) for part in parts])),
            (_MESSAGES_AT, heads),
            (_IOVECS_AT, b"".join([_IOVEC.pack(payload + begins, octets) for begins, octets, _ in parts])),
            (
                _CONTROLS_AT,
                b"".join(
                    [
                        _CONTROL.pack(_CONTROL_LENGTH, socket.IPPROTO_UDP, _UDP_SEGMENT, size & 0xFFFF)
                        for _, _, size in parts
                    ]
                ),
            ),
        ):
            self._file.octets[at : at + len(content)] = content

    def _part(self, place: int) -> tuple[int, int, int]:
        begins, octets, size = _PART.unpack_from(self._file.octets, _PARTS_AT + place * _PART.size)
        return begins, octets, size

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
            if sent:
                self.sent += sum(self._datagrams(one) for one in range(place, place + sent))
                place += sent
            elif error == errno.EAGAIN and (not wait or select.select([], [self._sockets[family]], [], wait)[1]):
                if not wait:
                    return False
            else:
                if error in _NOT_SEGMENTED and self._datagrams(place) > 1:
                    self._segments = False
                    self._send_one_by_one(family, place, wait)
                else:
                    self._count_failure(place, error, self._datagrams(place))
                self._sent_octets[place * _MESSAGE_WORDS + _SENT_AT] = _FAILED
                place += 1
        return True

    def _datagrams(self, place: int) -> int:
        _, octets, size = self._part(place)
        return -(-octets // size) if size else 1

    def _send_one_by_one(self, family: int, place: int, wait: float) -> None:
        """What the kernel does not cut up for us."""
        begins, octets, size = self._part(place)
        address = self._address(place)
        text, port, scope = unpack_address(address)
        where = (text, port, 0, scope) if family == socket.AF_INET6 else (text, port)
        for at in range(begins, begins + octets, size):
            content = self._file.octets[_PAYLOAD_AT + at : _PAYLOAD_AT + at + size]
            try:
                select.select([], [self._sockets[family]], [], wait)
                self._sockets[family].sendto(content, where)
                self.sent += 1
            except OSError as error:
                self._count_failure(place, error.errno or 0, 1)

    def _address(self, place: int) -> bytes:
        at = _NAMES_AT + place * _NAME_OCTETS
        return bytes(self._file.octets[at : at + _NAME_OCTETS])

    def _count_failure(self, place: int, error: int, datagrams: int) -> None:
        self.errors += datagrams
        self.failures[self._address(place), error] += datagrams

    def _call(self, family: int, place: int, count: int) -> tuple[int, int]:
        """How many were sent, and when that is none, the errno."""
        sender = self._sockets.get(family)
        if sender is None:
            return 0, errno.EAFNOSUPPORT
        sent = self._libc.sendmmsg(
            sender.fileno(),
            ctypes.c_void_p(self._base + _MESSAGES_AT + place * _MESSAGE.size),
            count,
            socket.MSG_NOSIGNAL,
        )
        return (sent, 0) if sent > 0 else (0, ctypes.get_errno())
