"""The lines of xrootd.pmark beside the plug-in: the server starts, nothing else changes, and no firefly leaves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import msgspec
import pytest

from scitags_demo.authority import Authority
from scitags_xrootd.config import SILENT_PMARK
from tests.xrootd.clients import XRDCP, here
from tests.xrootd.conftest import SANITIZER
from tests.xrootd.host import Agent
from tests.xrootd.moved import TAG, content, one
from tests.xrootd.plugin import built
from tests.xrootd.server import Server, free_port

OCTETS = 1_000_123
# As printed, and as they would be for fireflies.
SILENT = "\n".join(SILENT_PMARK)
SPEAKING = SILENT.replace("noscitag", "scitag")
LISTEN_SECONDS = 1.0


class Storage(msgspec.Struct):
    """A server with the plug-in, the agent that it tells, and where fireflies of its own would arrive."""

    server: Server
    agent: Agent
    fireflies: socket.socket


@pytest.fixture
def storage(authority: Authority, request: pytest.FixtureRequest) -> Iterator[Storage]:
    built(SANITIZER)
    with ExitStack() as stack:
        fireflies = stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        fireflies.bind(("127.0.0.1", 0))
        agent = Agent(None, backends="")
        stack.callback(agent.close)
        agent.start()
        port = fireflies.getsockname()[1]  # another than 10514, which an agent of this host may have
        lines = f"scitags.socket {agent.socket}\n{request.param}".replace("ffdest origin", f"ffdest origin:{port}")
        server = Server(authority, lines, sanitizer=SANITIZER, root_port=free_port(), http_port=free_port())
        stack.callback(server.close)
        server.start()
        yield Storage(server, agent, fireflies)


@pytest.mark.parametrize(
    ("storage", "are_sent"),
    [("", False), (SILENT, False), (SPEAKING, True)],
    ids=["without", "as printed", "for fireflies"],
    indirect=["storage"],
)
def test_the_plugin_alone_tells(storage: Storage, authority: Authority, are_sent: bool) -> None:
    server = storage.server
    server.put("file", content(OCTETS))
    here(*XRDCP, server.url("root", "127.0.0.1", f"file?scitag.flow={TAG}"), "/dev/null")
    start, end = one(storage.agent)
    assert (start.scitag, start.src_port, end.octets) == (TAG, server.root_port, (OCTETS, 0))
    url = server.url("https", "127.0.0.1", "file")
    trust = ("--cacert", authority.certificate)
    here("curl", "--fail", "--silent", *trust, "-H", f"SciTag: {TAG + 1}", "-o", "/dev/null", url)
    start, end = one(storage.agent)
    assert (start.scitag, start.src_port, end.octets) == (TAG + 1, server.http_port, (OCTETS, 0))
    assert bool(heard(storage.fireflies)) == are_sent
    said = [line for line in server.log_text().splitlines() if line.startswith(("Config warning", "Config invalid"))]
    assert not [line for line in said if "pmark" in line or "firefly" in line], said


def heard(fireflies: socket.socket) -> list[bytes]:
    """What came, and comes within a moment."""
    fireflies.settimeout(LISTEN_SECONDS)
    found = []
    with suppress(TimeoutError):
        while True:
            found.append(fireflies.recv(65536))
    return found
