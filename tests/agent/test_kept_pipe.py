"""Pipes that a service manager holds open over an agent's death, as systemd's store of descriptors does."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_agent.notify import Notifier, descriptor_name, handed_over
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for

START = b"start tcp 2001:db8::1 %d 2001:db8::2 43720 2 15\n"
NAME = "source named_pipe"
# Descriptors from 3 on, and whose they are, as systemd hands them over; exec keeps the number of the process.
HAND_OVER = """
import os, sys
held = int(sys.argv[1])
if held != 3:
    os.dup2(held, 3)
    os.close(held)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """The side of a service manager: what it is told, and the descriptors that it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def listen(self, until: str) -> None:
        """Do what it is told, until it is told that."""
        while True:
            octets, control, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
            fields = dict(line.split("=", 1) for line in octets.decode().splitlines())
            name = fields.get("FDNAME", "")
            if "FDSTORE" in fields:
                (self.held[name],) = array.array("i", control[0][2])
            elif "FDSTOREREMOVE" in fields and name in self.held:
                os.close(self.held.pop(name))
            if until in fields:
                return

    def start(self, agent: Agent) -> None:
        """Start an agent with what is held."""
        environment = os.environ | {"NOTIFY_SOCKET": str(self.path)}
        command = [sys.executable, "-m", "scitags_agent", "--config", str(agent.config)]
        descriptors = list(self.held.values())
        if descriptors:
            environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": next(iter(self.held))}
            command = [sys.executable, "-c", HAND_OVER, str(descriptors[0]), *command]
        with agent.log.open("ab") as log:
            agent.process = subprocess.Popen(
                command, env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        agent.start_waiting()

    def close(self) -> None:
        for descriptor in self.held.values():
            os.close(descriptor)
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(tmp_path / "notify")) as one:
        yield one


def write(path: Path, octets: bytes) -> None:
    """As a writer that leaves at once."""
    with path.open("wb", buffering=0) as pipe:
        pipe.write(octets)


@pytest.fixture
def killed(make_agent: Callable[..., Agent], collector: Collector, manager: Manager) -> Agent:
    """An agent that was killed with a line in its pipe, and whose pipe is held."""
    agent = make_agent(firefly_backend(collector), started=False)
    manager.start(agent)
    manager.listen("FDSTORE")
    assert manager.held.keys() == {NAME}
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    write(agent.pipe, START % 1)
    agent.kill()
    return agent


def test_what_was_in_the_pipe_at_a_kill_is_taken_up(killed: Agent, collector: Collector, manager: Manager) -> None:
    manager.start(killed)
    assert [one.key.src_port for one in collector.events(1)] == [1]
    assert killed.status()["sources"]["named_pipe"] == {"accepted": 1}
    write(killed.pipe, START % 2)
    assert [one.key.src_port for one in collector.events(2)] == [1, 2]
    # It is held still, for the next time; a clean stop ends that.
    assert os.path.samestat(os.fstat(manager.held[NAME]), killed.pipe.stat())
    assert killed.stop() == 0
    manager.listen("FDSTOREREMOVE")
    assert not manager.held
    assert not killed.pipe.exists()


def test_a_pipe_that_was_replaced_meanwhile_is_read_out(killed: Agent, collector: Collector, manager: Manager) -> None:
    killed.pipe.unlink()
    os.mkfifo(killed.pipe)
    manager.start(killed)
    assert [one.key.src_port for one in collector.events(1)] == [1]
    write(killed.pipe, START % 2)
    assert [one.key.src_port for one in collector.events(2)] == [1, 2]
    manager.listen("FDSTOREREMOVE")
    manager.listen("FDSTORE")
    assert os.path.samestat(os.fstat(manager.held[NAME]), killed.pipe.stat())


def test_what_nobody_asks_for_is_let_go(killed: Agent, manager: Manager) -> None:
    text = killed.config.read_text()
    killed.config.write_text(text.replace('kind = "named_pipe"', 'kind = "named_pipe"\nname = "another"', 1))
    writer = os.open(killed.pipe, os.O_WRONLY)
    killed.pipe.unlink()
    try:
        manager.start(killed)
        while NAME in manager.held:
            manager.listen("FDSTOREREMOVE")

        def is_broken() -> bool:
            try:
                os.write(writer, START % 3)
            except BrokenPipeError:
                return True
            return False

        wait_for(is_broken, what="the end of a pipe that nobody reads")
    finally:
        os.close(writer)


def test_names_and_what_is_handed_over_to_others() -> None:
    assert descriptor_name("source a:b\nü") == "source a_b__"
    assert len(descriptor_name("x" * 1000)) == 255
    mine, another = str(os.getpid()), str(os.getpid() + 1)
    for environment in (
        {},
        {"LISTEN_PID": another, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"},
        {"LISTEN_PID": mine, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"},
        {"LISTEN_PID": mine, "LISTEN_FDS": "-1", "LISTEN_FDNAMES": "a"},
    ):
        assert handed_over(environment) == {}
        assert not environment  # a child must not take them for its own
    Notifier().keep("a", 0)  # nobody is there to be told
