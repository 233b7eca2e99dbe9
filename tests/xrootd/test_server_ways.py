"""Ways of the server that move data past the usual calls, and its own sudden end."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_demo.authority import Authority
from tests.xrootd.clients import XRDCP, here
from tests.xrootd.conftest import SANITIZER
from tests.xrootd.host import Agent
from tests.xrootd.moved import TAG, content, one
from tests.xrootd.plugin import built
from tests.xrootd.server import Server, free_port

OCTETS = 20_000_123
ENDS_QUICKLY = "[table]\ngone_seconds = 0.5\n"


@pytest.fixture
def agent() -> Iterator[Agent]:
    one_agent = Agent(None, backends=ENDS_QUICKLY)
    one_agent.start()
    yield one_agent
    one_agent.close()


@pytest.fixture
def make_server(authority: Authority, agent: Agent) -> Iterator[Callable[[str], Server]]:
    built(SANITIZER)
    made: list[Server] = []

    def make(lines: str) -> Server:
        more = f"scitags.socket {agent.socket}\n{lines}"
        made.append(Server(authority, more, sanitizer=SANITIZER, root_port=free_port(), http_port=free_port()))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.mark.parametrize(
    "lines",
    ["xrootd.async Debug force minsize 4096", "xrootd.async nosf off", "xrootd.async nosf Debug force minsize 4096"],
    ids=["asynchronous", "no sendfile", "neither"],
)
def test_octets_are_exact(make_server: Callable[[str], Server], agent: Agent, tmp_path: Path, lines: str) -> None:
    server = make_server(lines)
    server.put("down", content(OCTETS))
    (tmp_path / "up").write_bytes(content(OCTETS, 1))
    here(*XRDCP, server.url("root", "127.0.0.1", f"down?scitag.flow={TAG}"), tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content(OCTETS)
    assert one(agent)[1].octets == (OCTETS, 0)
    here(*XRDCP, tmp_path / "up", server.url("root", "127.0.0.1", f"up?scitag.flow={TAG}"))
    assert (server.root / "up").read_bytes() == content(OCTETS, 1)
    start, end = one(agent)
    assert end.octets == (OCTETS, 0)
    assert start.dst_port == server.root_port


@pytest.mark.parametrize(
    ("name", "told"),
    [(None, "xrdcp"), ("athena-24.0", "athena-24.0"), ('a"b\\c d', "a_b_c_d"), ("x" * 100, "x" * 64)],
    ids=["as the program", "as told", "not fit for JSON", "long"],
)
def test_the_client_names_the_application(
    make_server: Callable[[str], Server],
    agent: Agent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    told: str,
) -> None:
    if name is not None:
        monkeypatch.setenv("XRD_APPNAME", name)
    server = make_server("")
    server.put("down", content(1000))
    here(*XRDCP, server.url("root", "127.0.0.1", f"down?scitag.flow={TAG}"), tmp_path / "down")
    assert {record.application for record in one(agent)} == {told}


def test_transfers_of_a_server_that_is_killed_end(make_server: Callable[[str], Server], agent: Agent) -> None:
    server = make_server("")
    path = server.put("long", b"")
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    url = server.url("root", "127.0.0.1", f"long?scitag.flow={TAG}")
    client = subprocess.Popen([*XRDCP, "--xrate", "20m", url, "/dev/null"], stderr=subprocess.DEVNULL)
    try:
        (start, *_) = agent.wait_for(bool, "a start")
        time.sleep(1.5)  # the agent has seen the connection
        assert server.process is not None
        server.process.send_signal(signal.SIGKILL)
        # The agent holds no socket of it, so its connection goes with it.
        (end, *_) = agent.wait_for(bool, "an end")
    finally:
        client.kill()
        client.wait(10)
    assert (start.state, end.state, end.ends) == ("start", "end", start.ends)


@pytest.mark.parametrize("header", ["SciTag", "scitag", "Scitag", "SCITAG"])
def test_a_header_in_any_case(make_server: Callable[[str], Server], agent: Agent, header: str) -> None:
    server = make_server("http.header2cgi Scitag scitag.flow\nhttp.header2cgi SCITAG scitag.flow")
    server.put("file", content(10))
    here("curl", "-sf", "-H", f"{header}: {TAG}", "-o", "/dev/null", server.url("http", "127.0.0.1", "file"))
    assert one(agent)[0].scitag == TAG


def test_the_rule_for_an_authenticated_user(make_server: Callable[[str], Server], agent: Agent) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    lines = f"scitags.map user nobody 3 12\nscitags.map user {user} 3 14\nscitags.default 1 1\n"
    server = make_server(f"xrootd.seclib libXrdSec.so\nsec.protocol unix\n{lines}")
    server.put("down", content(10))
    here(*XRDCP, server.url("root", "127.0.0.1", "down"), "/dev/null")
    start, _ = one(agent)
    assert (start.experiment_id, start.activity_id) == (3, 14)
