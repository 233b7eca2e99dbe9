"""A Unix datagram socket that takes our own JSON (scitags_core.flow_json).

A datagram is one event, an array of events, or a request, which is an object with a member "request":

    {"request": "events", "events": [...]}  ->  {"accepted": 2, "refused": ["why the third is not"]}
    {"request": "status"}                   ->  the agent's counters

A request is answered to the address that its sender has bound. The answer to events comes when the backends
have dealt with them: from then on the packets are marked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

import msgspec

from scitags_agent.local_path import admit, group_id, parse_mode
from scitags_core.errors import ConfigError, FlowEventError, shown
from scitags_core.flow_json import events_of, json_of
from scitags_core.roles import EventSink, SourceKind

log = logging.getLogger(__name__)

MAX_DATAGRAM = 1 << 18  # the kernel's default bound for a Unix datagram is below this
DATAGRAMS_AT_ONCE = 256
BACKLOG_OCTETS = 1 << 22


class UnixSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """path of the socket, its mode (octal), and the group that may write to it."""

    path: str = "/run/scitags/agent.sock"
    mode: str = "0660"
    group: str = ""


class UnixSocket:
    """The source. One instance for each socket."""

    def __init__(self, settings: UnixSettings) -> None:
        self._path = Path(settings.path)
        self._mode = parse_mode(settings.mode)
        self._group = group_id(settings.group)
        self._answers: set[asyncio.Task[None]] = set()

    async def run(self, sink: EventSink) -> None:
        """Receive until cancelled; then the socket's file is gone."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
            self._bind(receiver)
            loop.add_reader(receiver, self._receive, receiver, sink)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                loop.remove_reader(receiver)
                self._path.unlink(missing_ok=True)
                # What was sent before we left is ours to deal with.
                while self._receive(receiver, sink):
                    pass
                await asyncio.gather(*self._answers, return_exceptions=True)

    def _bind(self, receiver: socket.socket) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ConfigError(f"{self._path} is there and is no socket")
            if _is_alive(self._path):
                raise ConfigError(f"{self._path}: another agent listens there")
            self._path.unlink()
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BACKLOG_OCTETS)
        receiver.bind(os.fspath(self._path))
        admit(self._path, self._mode, self._group)

    def _receive(self, receiver: socket.socket, sink: EventSink) -> int:
        """Take what is there, up to a bound so that others get their turn; how many datagrams there were."""
        for count in range(DATAGRAMS_AT_ONCE):
            try:
                message, sender = receiver.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return count
            try:
                self._take(message, sender, receiver, sink)
            except FlowEventError as error:
                sink.refuse(str(error))
        return DATAGRAMS_AT_ONCE

    def _take(self, message: bytes, sender: Any, receiver: socket.socket, sink: EventSink) -> None:
        content = json_of(message)
        request = content.get("request") if isinstance(content, dict) else None
        if request is None:
            self._accept(content, sink)
            return
        if request == "events":
            accepted, refused = self._accept(content.get("events"), sink)
            answer = self._answer_events(accepted, refused, sender, receiver, sink)
        elif request == "status":
            answer = self._answer(sink.status(), sender, receiver)
        else:
            raise FlowEventError(f"request {shown(request)} is neither events nor status")
        task = asyncio.get_running_loop().create_task(answer)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _accept(self, content: Any, sink: EventSink) -> tuple[int, list[str]]:
        events, refused = events_of(content)
        for event in events:
            sink.accept(event)
        for reason in refused:
            sink.refuse(reason)
        return len(events), refused

    async def _answer_events(
        self, accepted: int, refused: list[str], sender: Any, receiver: socket.socket, sink: EventSink
    ) -> None:
        await sink.settled()
        await self._answer({"accepted": accepted, "refused": refused}, sender, receiver)

    async def _answer(self, content: dict[str, Any], sender: Any, receiver: socket.socket) -> None:
        if not sender:
            return  # a sender without an address does not want to know
        # A sender that left or does not read costs us nothing.
        with contextlib.suppress(OSError):
            receiver.sendto(msgspec.json.encode(content), sender)


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
    return True


KIND = SourceKind("unix", UnixSettings, UnixSocket)
