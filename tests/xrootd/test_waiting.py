"""scitags.wait: a transfer waits until its packets are marked, never longer than that, and not for nobody."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from scitags_demo.authority import Authority
from tests.agent.conftest import wait_for
from tests.netns.conftest import ALICE
from tests.xrootd.clients import curl, python
from tests.xrootd.conftest import SANITIZER, Site
from tests.xrootd.host import Agent
from tests.xrootd.moved import TAG, check_marked, content, one, sent
from tests.xrootd.plugin import built
from tests.xrootd.server import Server, free_port

OCTETS = 24_000_123
WAIT_SECONDS = 0.8
# Opens and closes a file again and again on one connection, and says how long each open took.
OPENS = """
import sys, time
from XRootD import client
url, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    file, began = client.File(), time.perf_counter()
    assert file.open(url)[0].ok
    print(time.perf_counter() - began)
    assert file.close()[0].ok
"""


@pytest.fixture
def make_server(authority: Authority) -> Iterator[Callable[[Agent], Server]]:
    built(SANITIZER)
    made: list[Server] = []

    def make(agent: Agent) -> Server:
        lines = f"scitags.socket {agent.socket}\nscitags.wait {WAIT_SECONDS * 1000:.0f}"
        made.append(Server(authority, lines, sanitizer=SANITIZER, root_port=free_port(), http_port=free_port()))
        made[-1].start()
        made[-1].put("file", bytes(10))
        return made[-1]

    yield make
    for server in made:
        server.close()


def opens(server: Server, count: int) -> list[float]:
    """Seconds that each open of a tagged file took."""
    url = server.url("root", "127.0.0.1", f"file?scitag.flow={TAG}")
    return [float(line) for line in python(OPENS, url, str(count)).split()]


@pytest.fixture(params=["datagram", "seqpacket"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    kind: Literal["datagram", "seqpacket"] = request.param
    made = Agent(None, backends="", type=kind)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.send_signal(signal.SIGCONT)
    made.close()


def test_an_agent_that_is_stuck_is_waited_for_once(make_server: Callable[[Agent], Server], agent: Agent) -> None:
    agent.start()
    server = make_server(agent)
    assert max(opens(server, 3)) < WAIT_SECONDS
    agent.transfers(3)
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    took = opens(server, 10)
    assert sum(seconds >= WAIT_SECONDS for seconds in took) == 1
    assert max(took) < WAIT_SECONDS + 1
    agent.process.send_signal(signal.SIGCONT)
    assert {parts[0].scitag for parts in agent.transfers(10)} == {TAG}
    time.sleep(1)  # for so long nothing waits for it
    assert max(opens(server, 3)) < WAIT_SECONDS
    agent.transfers(3)
    assert server.log_text().count("did not answer within 800 ms") == 1
    wait_for(lambda: "answers again" in server.log_text(), what="a line in the log")


def test_an_agent_that_is_started_again(make_server: Callable[[Agent], Server], agent: Agent) -> None:
    server = make_server(agent)
    assert max(opens(server, 3)) < WAIT_SECONDS  # nobody is there to wait for
    agent.start()
    agent.transfers(3)
    opens(server, 2)
    agent.transfers(2)
    agent.stop()
    agent.start()
    opens(server, 2)
    agent.transfers(2)
    assert "did not answer" not in server.log_text()


def test_without_it_only_the_first_packets_are_not_marked(site: Site) -> None:
    lines = f"scitags.socket {site.alice.agent.socket}"
    server = Server(
        site.authority,
        lines,
        namespace=site.pair.alice,
        addresses=(ALICE,),
        sanitizer=SANITIZER,
        root_port=2094,
        http_port=9443,
    )
    try:
        server.start()
        server.put("get", content(OCTETS))
        url = server.url("http", ALICE, "get")
        curl(site.pair.bob, site.authority, "--limit-rate", "8M", "-H", f"SciTag: {TAG}", "-o", "/dev/null", url)
        start, end = one(site.alice.agent)
        assert end.octets == (OCTETS, 0)
        check_marked(sent(site), start, TAG, share=0.0 if SANITIZER else 0.3)
    finally:
        server.close()
