"""What routers and switches export, as it comes in over UDP: sFlow v5, NetFlow v9, IPFIX; and fireflies."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from scitags_collector import netflow, sflow
from scitags_collector.exported import REASONS_KEPT, Exported, Exporter, Malformed, Sequence
from scitags_core.cli.output import count_text
from scitags_core.errors import ScitagsError

if TYPE_CHECKING:
    from scitags_collector.observation import Observation

Key = TypeVar("Key")
Kept = TypeVar("Kept")

SESSIONS_KEPT = 10_000
BUFFER_OCTETS = 16 << 20
LOOK_UP_SECONDS = 0.2
LOOK_UP_DATAGRAMS = 256
_DATAGRAM_OCTETS = 65_535
_FIREFLY_BEGINS = (b"<", b"{")
_SO_RCVBUFFORCE, _SO_RXQ_OVFL = 33, 40


class Exports:
    """A collector's memory of its exporters. Pure: datagrams and their times go in. Nothing is raised.

    malformed   how many datagrams made no sense, from some point on; reasons has why, the first of them
    """

    def __init__(self, rate_untold: int = 1) -> None:
        """rate_untold is the sampling rate of exporters that do not tell theirs: one in so many packets."""
        self._rate_untold = rate_untold
        self.malformed = 0
        self.reasons: list[str] = []
        self._exporters: dict[tuple[str, str, str], Exporter] = {}
        self._sflow: dict[tuple[object, ...], tuple[Exporter, Sequence]] = {}
        self._netflow: dict[tuple[object, ...], netflow.Session] = {}

    def read(self, datagram: bytes, source: tuple[str, int], now: int) -> list[Exported]:
        """What a datagram tells, from an address and a port, at now (nanoseconds since 1970)."""
        found: list[Exported] = []
        try:
            self._read(datagram, source, now, found)
        except Malformed as error:
            self.malformed += 1
            if len(self.reasons) < REASONS_KEPT:
                self.reasons.append(f"{source[0]}: {error}")
        return found

    def exporters(self) -> list[Exporter]:
        """Those seen, by address, format and domain."""
        return [self._exporters[key] for key in sorted(self._exporters)]

    def notes(self) -> list[str]:
        """What a reader of the result ought to know."""
        found = []
        if self.malformed:
            datagrams = count_text(self.malformed, "datagram")
            found.append(f"{datagrams} could not be read, or not to the end, the first from {self.reasons[0]}")
        for one in self.exporters():
            name = f"{one.kind} from {one.address}, {one.domain}"
            if one.tells_no_label():
                found.append(f"{name}: exports no flow label; whether its traffic is tagged cannot be told")
            if one.lost:
                found.append(f"{name}: {count_text(one.lost, 'record' if one.kind == 'IPFIX' else 'datagram')} lost")
            if one.waiting or one.unread:
                sets = count_text(one.waiting + one.unread, "data set")
                found.append(f"{name}: {sets} not read, as no template for them has come")
            if one.unusable:
                found.append(f"{name}: {count_text(one.unusable, 'record')} without addresses or counters")
        return found

    def _read(self, datagram: bytes, source: tuple[str, int], now: int, found: list[Exported]) -> None:
        address, port = source
        if datagram[:4] == sflow.VERSION.to_bytes(4, "big"):

            def agent(kind: str, domain: str) -> tuple[Exporter, Sequence]:
                key = (address, port, domain)
                if key not in self._sflow:
                    _make_room(self._sflow)
                    self._sflow[key] = self._exporter(address, kind, domain), Sequence()
                return self._sflow[key]

            for one in sflow.decode(datagram, now, agent):
                found.append(one)  # noqa: PERF402  (what came before the damage is kept)
            return
        version = int.from_bytes(datagram[:2], "big")
        if version not in netflow.KINDS or len(datagram) < 2:  # noqa: PLR2004
            raise Malformed(
                f"neither sFlow v5 nor NetFlow v9 nor IPFIX: it begins with {datagram[:4].hex() or 'nothing'}"
            )

        def session(kind: str, domain: int) -> netflow.Session:
            key = (address, port, kind, domain)
            if key not in self._netflow:
                _make_room(self._netflow)
                self._netflow[key] = netflow.Session(
                    self._exporter(address, kind, str(domain)), Sequence(), self._rate_untold
                )
            return self._netflow[key]

        netflow.decode(datagram, version, session, found)

    def _exporter(self, address: str, kind: str, domain: str) -> Exporter:
        key = (address, kind, domain)
        if key not in self._exporters:
            _make_room(self._exporters)
            self._exporters[key] = Exporter(*key)
        return self._exporters[key]


def _make_room(kept: dict[Key, Kept]) -> None:
    if len(kept) >= SESSIONS_KEPT:
        del kept[next(iter(kept))]


class CannotListen(ScitagsError):
    """The address cannot be listened on; the message says why."""


class ExportListener:
    """UDP ports to which exporters send; a datagram's first octets tell its format."""

    def __init__(self, addresses: list[tuple[str, int]], rate_untold: int = 1) -> None:
        """Pairs of address and port; an empty address is all, of both IP versions. Raises CannotListen."""
        self.exports = Exports(rate_untold)
        self._sockets: list[socket.socket] = []
        self._dropped: dict[int, int] = {}
        for address, port in addresses:
            try:
                self._sockets.append(_listening(address, port))
            except OSError as error:
                self.close()
                raise CannotListen(f"UDP port {port} of {address or 'all addresses'}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the ports back."""
        for one in self._sockets:
            one.close()

    def ports(self) -> list[int]:
        """Those listened on."""
        return [one.getsockname()[1] for one in self._sockets]

    def observe(self, observation: Observation, go_on: Callable[[], bool]) -> None:
        """Take what comes until go_on, asked several times a second, says no; and what was waiting by then."""
        poll = select.poll()
        by_number = {one.fileno(): one for one in self._sockets}
        for number in by_number:
            poll.register(number, select.POLLIN)
        while True:
            is_last = not go_on()
            ready = poll.poll(0 if is_last else LOOK_UP_SECONDS * 1000)
            took = sum(self._take(by_number[number], observation) for number, _ in ready)
            if is_last and took < LOOK_UP_DATAGRAMS:
                return

    def _take(self, sock: socket.socket, observation: Observation) -> int:
        for count in range(LOOK_UP_DATAGRAMS):
            try:
                datagram, ancillary, _, source = sock.recvmsg(_DATAGRAM_OCTETS, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return count
            except OSError:
                continue  # an error that came back for something; the next call has the next datagram
            for _, _, value in ancillary:
                self._dropped[sock.fileno()] = int.from_bytes(value[:4], sys.byteorder)
            if datagram[:1] in _FIREFLY_BEGINS:
                observation.announcements.add(datagram, time.time_ns())
                continue
            address = source[0].removeprefix("::ffff:")
            for one in self.exports.read(datagram, (address, source[1]), time.time_ns()):
                observation.add_exported(one)
        return LOOK_UP_DATAGRAMS

    def dropped(self) -> int:
        """Datagrams that the kernel had no room for, as far as those that came after have told."""
        return sum(self._dropped.values())

    def notes(self) -> list[str]:
        """What a reader of the result ought to know."""
        return self.exports.notes()


def _listening(address: str, port: int) -> socket.socket:
    family = socket.AF_INET if "." in address else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        try:
            made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_OCTETS)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_OCTETS)
        made.bind((address, port))
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
