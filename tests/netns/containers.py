"""A host with an agent, and "containers" beside it: network namespaces with a storage each, and a client behind a veth.

Every container has the same private addresses, and its client connects from the same port, unless told otherwise.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from scitags_agent.client import AgentClient, AgentUnavailable
from scitags_agent.namespaces import NAMED
from scitags_core import firefly, label
from scitags_core.flow import FlowEvent, FlowKey
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace, add_address, link
from tests.netns.watching import Seen

STORAGE = "fd00::2"
CLIENT = "fd00::1"
PORT = 1094
CLIENT_PORT = 40000
SECONDS = 20.0
FLOW = FlowKey.of(STORAGE, PORT, CLIENT, CLIENT_PORT)


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value as soon as it holds; fails when that takes too long."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {SECONDS} s"
        time.sleep(0.02)


class Container:
    """A storage, and its client."""

    def __init__(self, name: str, *, storage: str = STORAGE, client: str = CLIENT, labels: bool = False) -> None:
        """labels: the kernel writes labels, random ones in unmarked packets; else those bear label 0."""
        self.storage, self.client = storage, client
        self._stack = ExitStack()
        self.inside = self._stack.enter_context(Namespace(name))
        self.outside = self._stack.enter_context(Namespace(f"{name}'s client"))
        link(self.inside, "eth0", self.outside, "client0")
        for host, interface, address in ((self.inside, "eth0", storage), (self.outside, "client0", client)):
            add_address(host, interface, address, 64)
            host.set_sysctl("ipv6/auto_flowlabels", str(int(labels)))
        self.seen = Seen(self.outside, "client0")
        self._stack.callback(self.seen.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def number(self) -> int:
        return Path(self.inside.path).stat().st_ino

    def connect(self, *, port: int = PORT, client_port: int = CLIENT_PORT, by_storage: bool = False) -> Connection:
        """The client connects to the storage, or the storage to the client."""
        near, far = (self.outside, self.client, client_port), (self.inside, self.storage, port)
        if by_storage:
            near, far = far, near
        with far[0].entered():
            server = socket.create_server(far[1:], family=socket.AF_INET6)
        with near[0].entered():
            opened = socket.socket(socket.AF_INET6)
        with server:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(near[1:])
            opened.settimeout(SECONDS)
            opened.connect(far[1:])
            accepted, _ = server.accept()
        accepted.settimeout(SECONDS)
        return Connection(self, accepted, opened) if by_storage else Connection(self, opened, accepted)

    def say(self, agent: Agent, event: str) -> None:
        """A process of the container tells the agent."""
        code = (
            "import socket, sys\n"
            "sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            "sender.sendto(sys.argv[2].encode(), sys.argv[1])\n"
            "sys.stdin.read()\n"  # the agent looks who that was
        )
        before = agent.accepted("unix")
        sender = self.inside.popen([sys.executable, "-S", "-c", code, str(agent.socket), event], stdin=subprocess.PIPE)
        try:
            until(lambda: agent.accepted("unix") > before, "the event")
        finally:
            sender.communicate(timeout=SECONDS)


class Connection:
    """From the client to the storage; both ends are the test's own sockets."""

    def __init__(self, container: Container, client: socket.socket, storage: socket.socket) -> None:
        self.container = container
        self.client, self.storage = client, storage
        self.key = FlowKey.of(container.storage, storage.getsockname()[1], container.client, client.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, octets: int = 1 << 16) -> None:
        """From the storage."""
        self.storage.sendall(bytes(octets))
        while octets:
            octets -= len(self.client.recv(octets))

    def tags(self) -> set[Tag | None]:
        """What the storage's packets of some data sent now bear; None for packets without a label."""
        self.container.seen.packets()
        self.send()
        ports = self.key.src_port, self.key.dst_port
        words = {one.word & 0xFFFFF for one in self.container.seen.packets() if one.ports == ports and one.octets}
        assert words
        return {label.decode(word).tag if word else None for word in words}

    def close(self) -> None:
        """The client first, as it is of no interest to anybody."""
        self.client.close()
        self.storage.close()


class Agent:
    """An agent in a namespace of its own, the host's; it announces to a collector there."""

    def __init__(self, directory: Path, namespaces: list[str], more: str) -> None:
        self.socket, self.pipe = directory / "agent.sock", directory / "flowd"
        self._log = directory / "agent.log"
        self._config = directory / "agent.toml"
        self._stack = ExitStack()
        self.host = self._stack.enter_context(Namespace("host"))
        with self.host.entered():
            self._collector = self._stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self._collector.bind(("::1", 0))
        self._collector.setblocking(False)
        self._events: list[FlowEvent] = []
        self._rest = (
            "[table]\ngone_seconds = 0.2\n"
            f"[[source]]\nkind = 'unix'\npath = '{self.socket}'\n"
            f"[[source]]\nkind = 'named_pipe'\npath = '{self.pipe}'\n"
            "[[backend]]\nkind = 'firefly'\nto_destination = false\n"
            f"collectors = ['[::1]:{self._collector.getsockname()[1]}']\n{more}\n"
        )
        self._state = directory / "state"
        self._configure(namespaces)
        self.start()

    def _configure(self, namespaces: list[str]) -> None:
        head = f"[agent]\nstate_directory = '{self._state}'\nnamespaces = {namespaces}\n"
        self._config.write_text(head + self._rest)

    def reload(self, namespaces: list[str]) -> None:
        """With other namespaces than before."""
        self._configure(namespaces)
        before = self.log.count("the configuration has been read again")
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self.log.count("the configuration has been read again") > before, "the new configuration")

    def start(self) -> None:
        """The first, or the next."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "scitags_agent", "--config", str(self._config)]
            self.process = self.host.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._answers, "the agent")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(AgentUnavailable):
            return self.pipe.exists() and bool(self.status())
        return False

    @property
    def log(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(SECONDS)
            finally:
                if self.process.poll() is None:
                    self.process.kill()
                    self.process.wait()
        self._stack.close()

    def restart(self, number: signal.Signals) -> None:
        """End it, and start the next."""
        self.end(number)
        self.start()

    def end(self, number: signal.Signals) -> None:
        """And start no other."""
        self.process.send_signal(number)
        self.process.wait(SECONDS)

    def clean(self) -> str:
        """What `scitags agent clean` says, once it has ended."""
        command = [str(Path(sys.executable).parent / "scitags"), "agent", "clean", "--config", str(self._config)]
        return str(self.host.popen(command, stdout=subprocess.PIPE, text=True).communicate(timeout=SECONDS)[0])

    def status(self) -> dict[str, Any]:
        with AgentClient(self.socket) as client:
            return client.status(timeout=SECONDS)

    def accepted(self, source: str) -> int:
        return int(self.status()["sources"][source].get("accepted", 0))

    def flows(self) -> list[Mapping[str, Any]]:
        with AgentClient(self.socket) as client:
            return list(client.flows(timeout=SECONDS))

    def places(self) -> list[str]:
        """The namespaces of all flows, as the table names them."""
        return sorted(one.get("namespace", "") for one in self.flows())

    def write(self, line: str) -> None:
        """Into the named pipe."""
        self.pipe.write_text(f"{line}\n")

    def announced(self, count: int) -> list[FlowEvent]:
        """As many fireflies as are expected."""

        def come() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._events.append(firefly.decode(self._collector.recv(1 << 16)).event)
            return len(self._events) >= count

        until(come, f"{count} fireflies")
        assert len(self._events) == count
        return self._events


@contextlib.contextmanager
def named(container: Container, name: str) -> Iterator[str]:
    """A name that `ip netns` knows, for as long as this lasts; without what that would leave behind."""
    unique = f"scitags-{os.getpid()}-{name}"
    is_new = not NAMED.exists()
    NAMED.mkdir(exist_ok=True)
    place = NAMED / unique
    place.touch()
    subprocess.run(["mount", "--bind", container.inside.path, str(place)], check=True)
    try:
        yield unique
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.unlink()
        if is_new:
            with contextlib.suppress(OSError):  # somebody else may use it by now
                NAMED.rmdir()
