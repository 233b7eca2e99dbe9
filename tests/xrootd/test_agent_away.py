"""Whatever the agent does, transfers go on; and what it can be told it is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scitags_demo.authority import Authority
from tests.agent.conftest import wait_for
from tests.xrootd.clients import here, python
from tests.xrootd.conftest import SANITIZER
from tests.xrootd.host import Agent
from tests.xrootd.plugin import built
from tests.xrootd.server import Server, free_port

TAG = 143
QUICK_SECONDS = 5.0
OPENS = """
import sys
from XRootD import client
url, count = sys.argv[1], int(sys.argv[2])
files = [client.File() for _ in range(count)]
for number, file in enumerate(files):
    status, _ = file.open(url.format(number=number))
    assert status.ok, status
for file in files:
    status, _ = file.close()
    assert status.ok, status
"""


@pytest.fixture
def make_server(authority: Authority) -> Iterator[Callable[..., Server]]:
    built(SANITIZER)
    made: list[Server] = []

    def make(lines: str) -> Server:
        made.append(Server(authority, lines, sanitizer=SANITIZER, root_port=free_port(), http_port=free_port()))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def agent() -> Iterator[Agent]:
    one = Agent(None, backends="")
    yield one
    with contextlib.suppress(ProcessLookupError):
        if one.process is not None:
            one.process.send_signal(signal.SIGCONT)
    one.close()


@pytest.fixture
def server(make_server: Callable[..., Server], agent: Agent) -> Server:
    one = make_server(f"scitags.socket {agent.socket}")
    one.put("file", bytes(10))
    one.start()
    return one


def download(server: Server, tag: int = TAG, name: str = "file") -> None:
    """In far less than the time for which a client would wait."""
    began = time.monotonic()
    here("xrdcp", "--nopbar", "--force", server.url("root", "127.0.0.1", f"{name}?scitag.flow={tag}"), "/dev/null")
    assert time.monotonic() - began < QUICK_SECONDS


def test_an_agent_that_comes_later_is_told_of_what_was(server: Server, agent: Agent) -> None:
    download(server)
    wait_for(lambda: "no agent" in server.log_text(), what="a line in the log")
    agent.start()
    ((start, end),) = agent.transfers(1)
    assert (start.scitag, end.octets) == (TAG, (10, 0))
    assert server.log_text().count("no agent") == 1


def test_an_agent_that_is_started_again(server: Server, agent: Agent) -> None:
    agent.start()
    download(server)
    agent.transfers(1)
    agent.stop()
    download(server, TAG + 1)
    agent.start()
    ((start, _),) = agent.transfers(1)
    assert start.scitag == TAG + 1
    download(server, TAG + 2)
    assert agent.transfers(1)[0][0].scitag == TAG + 2


def test_an_agent_that_is_stuck(server: Server, agent: Agent) -> None:
    agent.start()
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    for number in range(30):
        download(server, 65 + number)
    agent.process.send_signal(signal.SIGCONT)
    transfers = agent.transfers(30)
    assert sorted(parts[0].scitag for parts in transfers) == [65 + number for number in range(30)]


def test_an_agent_that_is_flooded_by_others(server: Server, agent: Agent) -> None:
    agent.start()
    over = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            while not over.is_set():
                sender.sendto(b"rubbish" * 1000, os.fspath(agent.socket))

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        for number in range(10):
            download(server, 65 + number)
        transfers = agent.transfers(10)
    finally:
        over.set()
        flooder.join(10)
    assert sorted(parts[0].scitag for parts in transfers) == [65 + number for number in range(10)]


def test_a_seqpacket_socket(make_server: Callable[..., Server]) -> None:
    agent = Agent(None, backends="", type="seqpacket")
    try:
        agent.start()
        server = make_server(f"scitags.socket {agent.socket}")
        server.put("file", bytes(10))
        server.start()
        download(server)
        agent.transfers(1)
        agent.stop()
        agent.start()
        download(server, TAG + 1)
        assert agent.transfers(1)[0][0].scitag == TAG + 1
    finally:
        agent.close()


def test_a_thousand_opens_at_once_lose_nothing(server: Server, agent: Agent) -> None:
    agent.start()
    url = server.url("root", "127.0.0.1", "file?scitag.flow={number}")

    def open_some(first: int) -> None:
        python(OPENS.replace("number=number", f"number=65 + {first} + number"), url, "125")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_some, range(0, 1000, 125)))
    transfers = agent.transfers(1000)
    assert sorted(parts[0].scitag for parts in transfers) == [65 + number for number in range(1000)]


def test_a_queue_that_is_full_drops_whole_transfers(make_server: Callable[..., Server], agent: Agent) -> None:
    server = make_server(f"scitags.socket {agent.socket}\nscitags.queue 16")
    server.put("file", bytes(10))
    server.start()
    url = server.url("root", "127.0.0.1", "file?scitag.flow={number}")
    python(OPENS.replace("number=number", "number=65 + number"), url, "100")
    agent.start()
    transfers = agent.transfers(16)
    assert sorted(parts[0].scitag for parts in transfers) == [65 + number for number in range(16)]
    download(server)
    agent.transfers(1)
    wait_for(lambda: "transfers not reported so far: 84" in server.log_text(), what="the count in the log")


class Listener:
    """What comes to a Unix socket in place of an agent: messages with descriptors."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        path.chmod(0o666)
        self._socket.settimeout(10)

    def message(self) -> tuple[bytes, list[int]]:
        octets, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 18, 64)
        return octets, descriptors

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(agent: Agent) -> Iterator[Listener]:
    one = Listener(agent.socket)
    yield one
    one.close()


def test_the_socket_of_the_transfer_comes_along(server: Server, listener: Listener) -> None:
    download(server)
    message, descriptors = listener.message()
    (start, *_) = json.loads(message)
    (descriptor,) = descriptors
    with socket.socket(fileno=descriptor) as passed:
        assert passed.getsockname()[1] == start["src_port"] == server.root_port
        assert passed.getpeername()[1] == start["dst_port"]


def test_no_socket_comes_along_where_that_is_off(make_server: Callable[..., Server], agent: Agent) -> None:
    listener = Listener(agent.socket)
    try:
        server = make_server(f"scitags.socket {agent.socket}\nscitags.pass off")
        server.put("file", bytes(10))
        server.start()
        download(server)
        assert listener.message()[1] == []
    finally:
        listener.close()


def test_nothing_of_the_opaque_but_the_tag_goes_anywhere(server: Server, listener: Listener) -> None:
    secret = "Bearer%20c2VjcmV0"
    download(server, name=f"file?authz={secret}&scitag.flow=200&x=")
    told = b""
    while b'"end"' not in told:
        told += listener.message()[0]
    assert b"200" in told
    assert b"c2VjcmV0" not in told
    assert b"file" not in told
    assert "c2VjcmV0" not in server.log_text()
