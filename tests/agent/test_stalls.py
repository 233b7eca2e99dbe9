"""A slow, dead or flooding peer of the agent stalls nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_core import firefly
from scitags_core.flow import FlowState
from tests.agent.conftest import Agent, Collector, free_udp_port

STARTS = 200
PROMPT_SECONDS = 5.0

FLOOD = """
import socket, sys
family, kind, address, message = eval(sys.argv[1])
one = socket.socket(family, kind)
print("ready", flush=True)
while True:
    try:
        one.sendto(message, address)
    except OSError:
        pass
"""
EVENT = b'{"state":"start","src":"2001:db8::5","src_port":1,"dst":"2001:db8::6","dst_port":2,"scitag":143,"id":"f"}'


@contextlib.contextmanager
def flood(family: int, kind: int, address: object, message: bytes) -> Iterator[None]:
    """A process that sends as fast as it can."""
    argument = repr((int(family), int(kind), address, message))
    process = subprocess.Popen([sys.executable, "-c", FLOOD, argument], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def flooding_datagrams(agent: Agent, _: Path, __: int) -> Iterator[None]:
    with flood(socket.AF_UNIX, socket.SOCK_DGRAM, os.fspath(agent.socket), EVENT):
        yield


@contextlib.contextmanager
def flooding_fireflies(_: Agent, __: Path, port: int) -> Iterator[None]:
    with flood(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", port), b"rubbish"):
        yield


@contextlib.contextmanager
def clients_that_ask_and_never_read(_: Agent, connected: Path, __: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _number in range(20):
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            one.connect(os.fspath(connected))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _request in range(500):
                    one.send(b'{"request": "status"}')
        yield


@contextlib.contextmanager
def clients_that_say_nothing(_: Agent, connected: Path, __: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _number in range(400):  # more than are let in
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            one.settimeout(None)
            one.connect(os.fspath(connected))
        yield


Nuisance = Callable[[Agent, Path, int], "contextlib.AbstractContextManager[None]"]


@pytest.mark.parametrize(
    "nuisance",
    [flooding_datagrams, flooding_fireflies, clients_that_ask_and_never_read, clients_that_say_nothing],
)
def test_the_pipe_is_served_meanwhile(
    make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path, nuisance: Nuisance
) -> None:
    port, connected = free_udp_port(), tmp_path / "connected"
    # One collector is dead, one cannot be reached: neither may matter to the third.
    agent = make_agent(
        f'[[source]]\nkind = "unix"\nname = "connected"\ntype = "seqpacket"\npath = "{connected}"\n'
        f'[[source]]\nkind = "firefly"\nlisten = ["[::1]:{port}"]\n'
        '[[backend]]\nkind = "firefly"\nto_destination = false\n'
        f'collectors = ["[::1]:{free_udp_port()}", "240.0.0.1", "[::1]:{collector.port}"]\n'
    )
    with nuisance(agent, connected, port):
        began = time.monotonic()
        with agent.pipe.open("wb", buffering=0) as pipe:
            for number in range(1, STARTS + 1):
                pipe.write(b"start tcp 2001:db8::1 %d 2001:db8::2 9 2 15\n" % number)
        ours: set[int] = set()
        while len(ours) < STARTS and time.monotonic() - began < PROMPT_SECONDS:
            time.sleep(0.05)
            events = [firefly.decode(one).event for one in list(collector.datagrams)]
            ours = {one.key.src_port for one in events if one.key.dst_port == 9 and one.state is FlowState.START}
        assert len(ours) == STARTS
    assert agent.status()["sources"]["named_pipe"]["accepted"] == STARTS
