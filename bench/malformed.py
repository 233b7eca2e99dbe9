"""Malformed input to every source that takes any: the pipe, the sockets, fireflies over UDP, HTTP.

What is sent are good messages with octets changed, cut, doubled and moved, and octets by chance. The agent must live,
have counted each as accepted or refused, by reason, and be no larger for it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.pipe import START_SECONDS, wait_for
from scitags_agent.client import AgentClient

COUNT = 1_000_000
_ANSWER = b"HTTP/1.1 "
BATCH = 50
GOOD = {
    "pipe": b"start tcp 2001:db8::1 1094 2001:db8::2 43720 2 15",
    "json": b'{"state":"start","src":"2001:db8::1","src_port":1,"dst":"2001:db8::2","dst_port":2,"scitag":143}',
    "firefly": (
        b'<134>1 2026-01-31T12:00:00.000000Z storage xrootd - firefly-json - {"version":1,"flow-lifecycle":{"state":'
        b'"start","current-time":"2026-01-31T12:00:00Z","start-time":"2026-01-31T12:00:00Z"},"flow-id":{"afi":"ipv6",'
        b'"src-ip":"::1","dst-ip":"::1","protocol":"tcp","src-port":1094,"dst-port":43720},"context":{"experiment-id":2,'
        b'"activity-id":15,"application":""}}'
    ),
}


class Result(msgspec.Struct):
    """What became of the input to one source."""

    sent: int
    accepted: int
    refused: int
    reasons: int
    grown_megabytes: float


def mangled(good: bytes, chance: random.Random) -> bytes:
    """A good message no more, most of the time."""
    message = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(message) + 1)
        match chance.randrange(6):
            case 0:
                message[at:at] = chance.randbytes(chance.randint(1, 8))
            case 1:
                del message[at : at + chance.randint(1, 30)]
            case 2:
                message[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                message[at:at] = message[at : at + chance.randint(1, 30)]
            case 4:
                message[at:at] = chance.choice((b"{", b"[" * 40, b'"', b"\0", b"-1", b"9" * 30, b"null", b"\xff\xfe"))
            case _:
                message = message[at:] + message[:at]
        message = message or bytearray(b" ")
    return bytes(message)


class Target:
    """An agent with a source of each kind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [_free_port(kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        config = directory / "agent.toml"
        config.write_text(
            f'[agent]\nstate_directory = "{directory}/state"\n[table]\nmax_transfers = 1000\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{directory}/pipe"\n'
            f'[[source]]\nkind = "unix"\npath = "{directory}/agent.sock"\n'
            f'[[source]]\nkind = "unix"\nname = "connected"\ntype = "seqpacket"\npath = "{directory}/connected"\n'
            f'[[source]]\nkind = "firefly"\nlisten = ["[::1]:{self.ports[0]}"]\nonly_local = false\n'
            f'[[source]]\nkind = "http"\nport = {self.ports[1]}\n'
            '[[backend]]\nkind = "firefly"\nto_destination = false\n'
        )
        command = [sys.executable, "-m", "scitags_agent", "--config", str(config)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.client = AgentClient(directory / "agent.sock")
        wait_for(self.client)
        # Each source begins by itself: of what is sent to a port that nobody listens at yet, nobody is told.
        for table, port in zip(("udp6", "tcp"), self.ports, strict=True):
            _wait_until_taken(table, port)

    def close(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def counted(self, source: str) -> tuple[int, int, int]:
        status: dict[str, Any] = self.client.status(timeout=60)
        found = status["sources"][source]
        return found.get("accepted", 0), found.get("refused", 0), len(status["refusals"].get(source, {}))

    def memory(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def senders(self) -> dict[str, tuple[str, Callable[[list[bytes]], None]]]:
        """By the name of the source: which message is mangled for it, and what hands a batch over."""
        return {
            "named_pipe": ("pipe", self._to_pipe),
            "unix": ("json", self._to_datagrams),
            "connected": ("json", self._to_connection),
            "firefly": ("firefly", self._to_firefly),
            "http": ("json", self._to_http),
        }

    def _to_pipe(self, batch: list[bytes]) -> None:
        descriptor = os.open(self.directory / "pipe", os.O_WRONLY)
        try:
            os.write(descriptor, b"\n".join(batch) + b"\n")
        finally:
            os.close(descriptor)

    def _to_datagrams(self, batch: list[bytes]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            for message in batch:
                one.sendto(message, os.fspath(self.directory / "agent.sock"))

    def _to_connection(self, batch: list[bytes]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
            one.connect(os.fspath(self.directory / "connected"))
            for message in batch:
                one.send(message)

    def _to_firefly(self, batch: list[bytes]) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            for message in batch:
                one.sendto(message, ("::1", self.ports[0]))

    def _to_http(self, batch: list[bytes]) -> None:
        requests = b"".join(
            b"POST %b HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n%b"
            % (b"/v1/flows" if message[0] % 2 else b"/flow", len(message), message)
            for message in batch
        )
        with socket.create_connection(("127.0.0.1", self.ports[1]), timeout=60) as connection:
            sender = threading.Thread(target=connection.sendall, args=(requests,))
            sender.start()
            answers, rest = 0, b""
            while answers < len(batch):
                octets = connection.recv(1 << 16)
                if not octets:
                    raise ConnectionError(f"{answers} answers to {len(batch)} requests")
                octets = rest + octets
                answers += octets.count(_ANSWER)
                rest = octets[1 - len(_ANSWER) :]
            sender.join()


@contextlib.contextmanager
def target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        one = Target(Path(name))
        try:
            yield one
        finally:
            one.close()


def run(one: Target, source: str, count: int, *, seed: int | None = None) -> Result:
    """Send so many malformed messages to a source, a tenth of them before its memory is first looked at."""
    chance = random.Random(seed)
    kind, send = one.senders()[source]
    before = 0.0
    first = one.counted(source)
    sent = 0
    while sent < count:
        batch = [mangled(GOOD[kind], chance) for _ in range(BATCH)]
        if source == "named_pipe":
            # A line is what stands between two newlines, and blank ones are none.
            batch = [line for message in batch for line in message.split(b"\n") if line.strip()]
        sent += len(batch)
        send(batch)
        # What the kernel has no room for is lost without a word by UDP alone; its buffer holds 90 of the longer ones.
        if source == "firefly" or sent % (BATCH * 20) < BATCH:
            _catch_up(one, source, first, sent)
        if not before and sent > count // 10:
            before = one.memory()
    _catch_up(one, source, first, sent)
    accepted, refused, reasons = one.counted(source)
    return Result(sent, accepted - first[0], refused - first[1], reasons, one.memory() - before)


def _catch_up(one: Target, source: str, first: tuple[int, int, int], sent: int) -> None:
    """Wait until the agent has counted what was sent: the kernel's buffers for datagrams are small."""
    deadline = time.monotonic() + 20
    while (counted := sum(one.counted(source)[:2]) - sum(first[:2])) < sent:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{source}: {sent} messages were sent, and {counted} of them counted")
        time.sleep(0.002)


def _wait_until_taken(table: str, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while f":{port:04X} " not in Path("/proc/net", table).read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens at port {port}")
        time.sleep(0.01)


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET6 if kind == socket.SOCK_DGRAM else socket.AF_INET, kind) as probe:
        probe.bind(("::1" if kind == socket.SOCK_DGRAM else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    seed = random.randrange(1 << 32)
    print(f"\nMalformed input, seed {seed}")
    with target() as one:
        for source in one.senders():
            began = time.monotonic()
            found = run(one, source, COUNT, seed=seed)
            print(
                f"  {source:<12} {found.sent:>9,} sent: {found.accepted:>7,} good, {found.refused:>9,} refused, "
                f"{found.reasons} reasons, {found.grown_megabytes:+.1f} MB, {time.monotonic() - began:.0f} s",
                flush=True,
            )
        print(f"  the agent lives: {one.process.poll() is None}, {one.memory():.0f} MB")
