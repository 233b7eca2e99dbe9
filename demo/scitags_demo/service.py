"""The transfer service: drives both storages through the plan, as FTS drives real ones, and keeps what they counted.

For each file: both storages tell their agents, the connection is opened if there is none, the supplier sends and the
receiver counts, and when the file is over both tell their agents again; after the last file of a connection, only
when it is closed. So every packet of a tagged connection, the first and the last included, can be marked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scitags_core.errors import ScitagsError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.flow_json import encode_event
from scitags_core.tag import Tag
from scitags_demo import rpc
from scitags_demo.errors import DemoError
from scitags_demo.plan import Connection, Plan, Side, Transfer, other

APPLICATION = "scitags-demo"
ANSWER_SECONDS = 90.0
GRACE_SECONDS = 20.0  # beyond the plan's time, before the show is given up


class Mark(msgspec.Struct, frozen=True):
    """From this octet of what the supplier hands to TCP on, the connection's packets are to bear the tag."""

    octet: int
    tag: Tag | None


class Record(msgspec.Struct, kw_only=True):
    """What the storages counted on one connection.

    octets           that the supplier handed to TCP, the framing of files included
    retransmitted    octets that TCP sent more than once
    segments         that both ends sent, by TCP's own count: all but the last of the closing
    starts, ends     events reported for each tag, by the supplier
    """

    connection: Connection
    key: FlowKey
    octets: int = 0
    retransmitted: int = 0
    segments: int = 0
    marks: list[Mark] = msgspec.field(default_factory=list)
    starts: list[Tag] = msgspec.field(default_factory=list)
    ends: list[Tag] = msgspec.field(default_factory=list)

    def octets_by_mark(self) -> dict[Tag | None, int]:
        """The supplier's octets, by the tag that the connection was to bear when they were sent."""
        found: dict[Tag | None, int] = {}
        for position, mark in enumerate(self.marks):
            until = self.marks[position + 1].octet if position + 1 < len(self.marks) else self.octets
            if until > mark.octet:
                found[mark.tag] = found.get(mark.tag, 0) + until - mark.octet
        return found


def run_plan(plan: Plan, controls: Mapping[Side, Path], addresses: Mapping[int, Mapping[Side, str]]) -> list[Record]:
    """Carry the plan out; what was counted, connection by connection. Raises DemoError.

    controls: where each storage is spoken to; addresses: of each storage, by address family.
    """
    for side, path in controls.items():
        with rpc.StorageClient(path, ANSWER_SECONDS) as storage:
            for family, port in sorted({(c.family, c.server_port) for c in plan.connections if c.server == side}):
                storage.ask(rpc.Listen(addresses[family][side], port))
    began = time.monotonic()
    drives = [_Drive(connection, began, controls, addresses[connection.family]) for connection in plan.connections]
    for drive in drives:
        drive.start()
    deadline = began + plan.seconds + GRACE_SECONDS
    for drive in drives:
        drive.join(max(0.0, deadline - time.monotonic()))
    for drive in drives:
        if drive.problem:
            raise DemoError(f"connection {drive.record.connection.number}: {drive.problem}")
        if drive.is_alive():
            raise DemoError(
                f"connection {drive.record.connection.number} is not over {GRACE_SECONDS:g} s after its time"
            )
    return [drive.record for drive in drives]


class _Drive(threading.Thread):
    """One connection's way through the plan."""

    def __init__(
        self, connection: Connection, began: float, controls: Mapping[Side, Path], addresses: Mapping[Side, str]
    ) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._began = began
        self._controls = controls
        self._addresses = addresses
        self._lock = threading.Lock()
        self._active: list[Transfer] = []
        self._begun = 0
        self._start_times: dict[int, datetime] = {}
        self.record = Record(connection=connection, key=connection.key(dict(addresses)))
        self.problem = ""

    def run(self) -> None:
        moves: list[tuple[Transfer, threading.Thread]] = []
        try:
            for transfer in self._connection.transfers:
                self._sleep_until(transfer.begin)
                for earlier, move in moves:
                    if earlier.end <= transfer.begin:
                        move.join()  # however late it is, what comes after it comes after it
                self._begin(transfer)
                move = threading.Thread(target=self._move, args=(transfer,), daemon=True)
                move.start()
                moves.append((transfer, move))
        except (ScitagsError, OSError) as error:
            self.problem = str(error)
        for _, move in moves:
            move.join()

    def _sleep_until(self, offset: float) -> None:
        time.sleep(max(0.0, self._began + offset - time.monotonic()))

    def _line(self, side: Side) -> rpc.StorageClient:
        return rpc.StorageClient(self._controls[side], ANSWER_SECONDS)

    def _begin(self, transfer: Transfer) -> None:
        with self._lock:
            self._change(FlowState.START, transfer, [*self._active, transfer])
            if not self._begun:
                self._open()
            self._begun += 1

    def _move(self, transfer: Transfer) -> None:
        """Send and receive one file, and report its end."""
        connection = self._connection
        try:
            with self._line(connection.supplier) as supplier, self._line(other(connection.supplier)) as receiver:
                sent = supplier.ask(
                    rpc.Send(connection.number, transfer.number, transfer.octets, transfer.octets_a_second)
                )
                received = receiver.ask(rpc.Receive(connection.number, transfer.number))
            if sent.octets != received.octets:
                raise DemoError(f"file {transfer.number}: {sent.octets} octets sent, {received.octets} received")
            with self._lock:
                rest = [one for one in self._active if one is not transfer]
                is_last = not rest and self._begun == len(connection.transfers)
                if is_last:
                    self._close()
                self._change(FlowState.END, transfer, rest)
        except (ScitagsError, OSError) as error:
            self.problem = str(error)

    def _open(self) -> None:
        connection, number = self._connection, self._connection.number
        client, server = self._addresses[connection.client], self._addresses[connection.server]
        with self._line(connection.client) as line:
            line.ask(rpc.Open(number, client, connection.client_port, server, connection.server_port, connection.dscp))
        with self._line(connection.server) as line:
            line.ask(rpc.Accepted(number, client, connection.client_port, connection.dscp))

    def _close(self) -> None:
        """Close the connection from its supplier's end; the other follows."""
        for side in (self._connection.supplier, other(self._connection.supplier)):
            with self._line(side) as line:
                answer = line.ask(rpc.Close(self._connection.number))
            if side == self._connection.supplier:
                self.record.octets = answer.octets
            self.record.retransmitted += answer.retransmitted
            self.record.segments += answer.segments

    def _change(self, state: FlowState, transfer: Transfer, active: list[Transfer]) -> None:
        """Report the start or end of a file, after which these are under way on the connection."""
        mark, marks = _mark(active), self.record.marks
        if not marks:
            self._report(state, transfer)
            marks.append(Mark(0, mark))
        elif active and mark != marks[-1].tag:
            # What TCP has yet to send would leave with the new mark, and be counted for the wrong tag.
            with self._line(self._connection.supplier) as supplier:
                octets = supplier.ask(rpc.Hold(self._connection.number)).octets
                self._report(state, transfer)
                supplier.ask(rpc.Resume(self._connection.number))
            marks.append(Mark(octets, mark))
        else:
            self._report(state, transfer)
        self._active = active

    def _report(self, state: FlowState, transfer: Transfer) -> None:
        """Have both storages tell their agents, and wait until both agents have acted on it."""
        if transfer.tag is None:
            return  # the request bore no tag, so there is nothing to tell
        now = datetime.now(UTC)
        is_end = state is FlowState.END
        event = FlowEvent(
            state=state,
            key=self.record.key,
            tag=transfer.tag,
            start_time=self._start_times.setdefault(transfer.number, now),
            end_time=now if is_end else None,
            application=APPLICATION,
            usage=Usage(received=0, sent=transfer.octets) if is_end else None,
            transfer_id=str(transfer.number),
        )
        request = rpc.Report(self._connection.channel, [msgspec.json.decode(encode_event(event))])
        for side in (self._connection.supplier, other(self._connection.supplier)):
            with self._line(side) as line:
                line.ask(request)
        (self.record.ends if is_end else self.record.starts).append(transfer.tag)


def _mark(active: Sequence[Transfer]) -> Tag | None:
    """What the agent's table makes of these: the newest tag."""
    return next((transfer.tag for transfer in reversed(active) if transfer.tag is not None), None)
