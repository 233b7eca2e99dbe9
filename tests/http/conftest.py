"""A host with a data service and an agent that marks, a client's host, and what arrives there."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from scitags_core import label
from tests.agent.conftest import START_SECONDS, STOP_SECONDS, wait_for
from tests.netns.conftest import ALICE, BOB, Pair, bpf, root
from tests.netns.namespaces import Namespace, add_address, link
from tests.netns.watching import Seen
from tests.xrootd.host import MARKER, Agent, Record

__all__ = ["bpf", "root"]

ROOT = Path(__file__).parents[2]
PORT = 8000
ALICE_IPV4, BOB_IPV4 = "192.0.2.1", "192.0.2.2"
MORE_SOURCES = """
[[source]]
kind = "http"
socket = "{directory}/http.sock"
mode = "0666"

[[source]]
kind = "named_pipe"
path = "{directory}/flowd"
mode = "0666"
"""


class Site(msgspec.Struct):
    """alice serves, bob asks."""

    pair: Pair
    agent: Agent
    seen: Seen

    def client(self, *, port: int = PORT, source_port: int = 0, host: str = ALICE) -> http.client.HTTPConnection:
        """A connection from bob."""
        near = BOB if ":" in host else BOB_IPV4
        source = (near, source_port) if source_port else None
        connection = http.client.HTTPConnection(host, port, timeout=20, source_address=source)
        with self.pair.bob.entered():
            connection.connect()
        return connection

    def only(self, count: int = 1) -> list[tuple[Record, Record]]:
        """Start and end of each of so many transfers, in the order of their starts."""
        pairs = []
        for parts in self.agent.transfers(count):
            start, end = parts
            assert (start.state, end.state) == ("start", "end")
            pairs.append((start, end))
        return sorted(pairs, key=lambda pair: pair[0].start_time)

    def tags(self, ports: tuple[int, int]) -> dict[int, int]:
        """How many packets from one port to the other bore which scitag (0: no label), since the last look."""
        found: dict[int, int] = {}
        for word, count in self.seen.words().get(ports, {}).items():
            bits = word & label.LABEL_MAX
            number = label.decode(bits).tag.scitag if bits else 0
            found[number] = found.get(number, 0) + count
        return found


@pytest.fixture(scope="session")
def whole_site(root: None, bpf: None) -> Iterator[Site]:
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        hosts = ((alice, "alice0", ALICE, ALICE_IPV4), (bob, "bob0", BOB, BOB_IPV4))
        for host, interface, ipv6, ipv4 in hosts:
            add_address(host, interface, ipv6, 64)
            add_address(host, interface, ipv4, 24)
            # Unmarked packets then bear label 0, so that "untouched" can be told exactly.
            host.set_sysctl("ipv6/auto_flowlabels", "0")
        agent = Agent(alice, backends=MARKER)
        text = agent.config.read_text()
        agent.config.write_text(text + MORE_SOURCES.format(directory=agent.directory))
        stack.callback(agent.close)
        agent.start()
        seen = Seen(bob, "bob0")
        stack.callback(seen.close)
        yield Site(Pair(alice, bob), agent, seen)


@pytest.fixture
def site(whole_site: Site) -> Site:
    whole_site.agent.new_records()
    whole_site.seen.words()
    return whole_site


class Service:
    """A server process on alice."""

    def __init__(self, site: Site, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self.log = site.agent.directory / f"server-{os.urandom(4).hex()}.log"
        with self.log.open("wb") as log:
            self.process = site.pair.alice.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                # gunicorn keeps something at home.
                env={
                    **os.environ,
                    "HOME": str(site.agent.directory),
                    "SCITAGS_AGENT": str(site.agent.socket),
                    **(environment or {}),
                },
            )
        self._site = site

    def wait_until_it_listens(self, port: int = PORT) -> None:
        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                self._site.client(port=port).close()
            except OSError:
                return False
            return True

        wait_for(listens, START_SECONDS, "the server")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)


MODULE = "tests.http.application"
SERVERS = {
    "uvicorn": ["uvicorn", "--host", "::", "--port", str(PORT), "--log-level", "warning", f"{MODULE}:asgi"],
    "gunicorn": ["gunicorn", "--bind", f"[::]:{PORT}", "--threads", "4", "--log-level", "warning", f"{MODULE}:wsgi"],
    "waitress": ["waitress", f"--listen=[::]:{PORT}", f"{MODULE}:wsgi"],
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, whole_site: Site) -> Iterator[str]:
    """Every kind of server in turn, with the service behind the middleware."""
    one = Service(whole_site, [sys.executable, "-m", *SERVERS[request.param]])
    try:
        one.wait_until_it_listens()
        yield request.param
    finally:
        one.close()
