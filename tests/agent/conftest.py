"""A real agent as a process, and a collector that keeps what it receives."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scitags_agent.client import AgentClient, AgentUnavailable
from scitags_core import firefly
from scitags_core.flow import FlowEvent

SO_RCVBUFFORCE = 33
START_SECONDS = 15.0
STOP_SECONDS = 10.0


def wait_for(condition: Callable[[], bool], seconds: float = 10.0, what: str = "the condition") -> None:
    """Return when the condition holds; fail when it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come within {seconds} s")
        time.sleep(0.01)


def free_udp_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return int(probe.getsockname()[1])


class Agent:
    """An agent process with a named pipe, a Unix socket, and the backends asked for."""

    def __init__(self, directory: Path, backends: str, *, more: str = "") -> None:
        self.pipe = directory / "flowd"
        self.socket = directory / "agent.sock"
        self.config = directory / "agent.toml"
        self.log = directory / "agent.log"
        state = "" if "[agent]" in more else f'[agent]\nstate_directory = "{directory}/state"\n'
        self.config.write_text(
            f'{more}\n{state}[[source]]\nkind = "named_pipe"\npath = "{self.pipe}"\n'
            f'[[source]]\nkind = "unix"\npath = "{self.socket}"\n{backends}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start_without_waiting(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "scitags_agent", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> None:
        self.start_without_waiting()
        self.start_waiting()

    def start_waiting(self) -> None:
        wait_for(self._answers, START_SECONDS, "an answer from the agent")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the agent ended with {self.process.returncode}: {self.log.read_text()}")
        with contextlib.suppress(AgentUnavailable):
            return self.pipe.exists() and bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        with AgentClient(self.socket) as client:
            return client.status(timeout=10)

    def accepted(self, source: str) -> int:
        return int(self.status()["sources"][source].get("accepted", 0))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)


class Collector:
    """A UDP socket on loopback, drained by a thread."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET6) -> None:
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        self._socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.datagrams: list[bytes] = []
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def _drain(self) -> None:
        while datagram := self._socket.recv(1 << 16):
            self.datagrams.append(datagram)

    def wait(self, count: int, seconds: float = 10.0) -> list[bytes]:
        wait_for(lambda: len(self.datagrams) >= count, seconds, f"{count} fireflies")
        return self.datagrams

    def events(self, count: int) -> list[FlowEvent]:
        return [firefly.decode(datagram).event for datagram in self.wait(count)]

    def close(self) -> None:
        # An empty datagram of our own ends the thread.
        with socket.socket(self._socket.family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def firefly_backend(collector: Collector) -> str:
    return (
        f'[[backend]]\nkind = "firefly"\nto_destination = false\ncollectors = ["[::1]:{collector.port}"]\n'
        "announce_unknown = true\n"
    )


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(backends: str, *, more: str = "", started: bool = True) -> Agent:
        directory = tmp_path / f"agent{len(made)}"
        directory.mkdir()
        made.append(Agent(directory, backends, more=more))
        if started:
            made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def agent(make_agent: Callable[..., Agent], collector: Collector) -> Agent:
    """An agent that announces everything to the collector."""
    return make_agent(firefly_backend(collector))
