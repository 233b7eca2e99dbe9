"""How the demonstration's storages tell their agent of flows: JSON to its Unix socket, or lines to its pipe.

Written against the agent's documented interface alone, as any storage's author could.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from scitags_core.errors import ScitagsError
from scitags_core.flow import FlowEvent
from scitags_core.flow_json import decode_event

ANSWER_SECONDS = 5.0
_ANSWER_OCTETS = 1 << 18
_POLL_SECONDS = 0.005
PIPE_SOURCE = "named_pipe"


class NotReported(ScitagsError):
    """The agent is not there, does not answer, or refuses."""


class Reporter:
    """One storage's line to the agent beside it. Not to be shared by threads without a lock."""

    def __init__(self, agent_socket: Path, agent_pipe: Path, own_socket: Path) -> None:
        self._agent = os.fspath(agent_socket)
        self._pipe = agent_pipe
        self._lines_written = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.bind(os.fspath(own_socket))

    def close(self) -> None:
        self._socket.close()

    def status(self) -> dict[str, Any]:
        """What the agent counts."""
        return self._ask({"request": "status"})

    def by_socket(self, events: list[dict[str, Any]]) -> None:
        """Hand the events over; return when they are in force."""
        refused = self._ask({"request": "events", "events": events})["refused"]
        if refused:
            raise NotReported(f"the agent refused: {'; '.join(refused)}")

    def by_pipe(self, events: list[dict[str, Any]]) -> None:
        """As by_socket, through the pipe. It gives no answer, so the agent is asked until it has counted them."""
        lines = b"".join(storm_line(decode_event(event)) for event in events)
        with self._pipe.open("ab", buffering=0) as pipe:
            pipe.write(lines)
        self._lines_written += len(events)
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._lines_accepted() < self._lines_written:
            if time.monotonic() > deadline:
                raise NotReported(f"the agent has not taken all of {self._lines_written} lines from its pipe")
            time.sleep(_POLL_SECONDS)
        self.by_socket([])  # answered when the backends have dealt with all that came before

    def _lines_accepted(self) -> int:
        return int(self.status()["sources"][PIPE_SOURCE].get("accepted", 0))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendto(msgspec.json.encode(request), self._agent)
            answer: dict[str, Any] = msgspec.json.decode(self._socket.recv(_ANSWER_OCTETS))
        except OSError as error:
            raise NotReported(f"no answer from the agent at {self._agent}: {error}") from None
        return answer


def storm_line(event: FlowEvent) -> bytes:
    """The line for an event as StoRM WebDAV writes it: IPv6 addresses in brackets and not shortened."""
    key, tag = event.key, event.tag
    return (
        f"{event.state.value} {key.protocol} {_storm_address(key.src)} {key.src_port} "
        f"{_storm_address(key.dst)} {key.dst_port} {tag.experiment} {tag.activity}\n"
    ).encode("ascii")


def _storm_address(text: str) -> str:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return text
    # Groups without leading zeros, but none left out: Java's way.
    groups = (f"{int(group, 16):x}" for group in address.exploded.split(":"))
    return f"[{':'.join(groups)}]"
