"""Where packets come from: an interface, or a capture file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import dpkt

from scitags_collector.packet import Packet, parse_ethernet, parse_ip
from scitags_core.errors import PeerDataError, ScitagsError

# Fireflies are read whole; of other packets only the headers matter.
SNAP_OCTETS = 2048
BUFFER_OCTETS = 256 << 20
LOOK_UP_SECONDS = 0.2

ETH_P_ALL = 0x0003
SIOCGIFHWADDR = 0x8927
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_STATISTICS = 6
_ETHERNET_TYPES = (1, 772)

# Link types of capture files (tcpdump.org/linktypes): how many octets stand before the IP header.
_LINK_NULL, _LINK_ETHERNET, _LINK_LOOP, _LINK_SLL, _LINK_SLL2 = 0, 1, 108, 113, 276
_LINK_RAW = (12, 14, 101, 228, 229)
_LINK_OFFSETS = {_LINK_NULL: 4, _LINK_LOOP: 4, _LINK_SLL: 16, _LINK_SLL2: 20, **dict.fromkeys(_LINK_RAW, 0)}

Parser = Callable[[bytes], Packet | None]


class CaptureUnavailable(ScitagsError):
    """The interface cannot be captured from; the message says why."""


class LiveCapture:
    """Everything that an interface sends and receives, from the moment this is made.

    Needs CAP_NET_RAW in the network namespace. Raises CaptureUnavailable.
    """

    def __init__(self, interface: str) -> None:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise CaptureUnavailable("the right to capture is missing: run as root, or with CAP_NET_RAW") from None
        try:
            hardware = fcntl.ioctl(self._socket, SIOCGIFHWADDR, struct.pack("16sH22x", interface.encode(), 0))
            for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER_OCTETS)
                    break
            self._socket.bind((interface, ETH_P_ALL))
            self._socket.settimeout(LOOK_UP_SECONDS)
        except OSError as error:
            self._socket.close()
            raise CaptureUnavailable(f"interface {interface!r}: {error.strerror}") from None
        is_ethernet = struct.unpack("16sH22x", hardware)[1] in _ETHERNET_TYPES
        self._parse: Parser = parse_ethernet if is_ethernet else parse_ip
        self._dropped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def packets(self, go_on: Callable[[], bool]) -> Iterator[tuple[int, Packet]]:
        """Packets with their times of receipt (nanoseconds since 1970); go_on is asked at every pause and now and
        then, and what is still queued is delivered before the end."""
        parse, now = self._parse, time.time_ns
        count = 0
        while go_on():
            try:
                while True:
                    packet = parse(self._socket.recv(SNAP_OCTETS))
                    if packet is not None:
                        yield now(), packet
                    count += 1
                    if not count & 0x3FF and not go_on():
                        break
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise CaptureUnavailable(f"the capture ended: {error.strerror}") from None
                time.sleep(LOOK_UP_SECONDS)  # it may come up again
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                packet = parse(self._socket.recv(SNAP_OCTETS))
                if packet is not None:
                    yield now(), packet

    def dropped(self) -> int:
        """Packets that the kernel could not hand over, since the beginning."""
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._dropped += struct.unpack("II", statistics)[1]  # reading it sets it to 0
        return self._dropped


def read_file(path: Path) -> Iterator[tuple[int, Packet]]:
    """The packets of a pcap or pcapng file, with their times. Raises PeerDataError."""
    try:
        with path.open("rb") as file:
            reader = dpkt.pcap.UniversalReader(file)
            parse = _parser_of(reader.datalink())
            for seconds, octets in reader:
                packet = parse(octets)
                if packet is not None:
                    yield int(seconds * 1e9), packet
    except OSError as error:
        raise PeerDataError(f"{path}: {error.strerror}") from None
    except (ValueError, dpkt.Error, struct.error) as error:
        raise PeerDataError(f"{path} is no capture file, or is damaged: {error}") from None


def _parser_of(link_type: int) -> Parser:
    if link_type == _LINK_ETHERNET:
        return parse_ethernet
    if link_type not in _LINK_OFFSETS:
        raise PeerDataError(f"link type {link_type} is not known")
    offset = _LINK_OFFSETS[link_type]
    return lambda octets: parse_ip(octets, offset)
