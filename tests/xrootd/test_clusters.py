"""The plug-in where no data is, and where data is passed on: a redirector, a proxy, a cache."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scitags_demo.authority import Authority
from scitags_demo.xrootd_server import USER
from tests.xrootd.clients import XRDCP, here
from tests.xrootd.conftest import SANITIZER
from tests.xrootd.host import Agent
from tests.xrootd.moved import TAG, content, one
from tests.xrootd.plugin import built
from tests.xrootd.server import Server, free_port

OCTETS = 3_000_123
OTHER = 206
CMSD = """
all.role {role}
all.export /
all.adminpath {directory}/admin
all.pidpath {directory}/admin
all.manager localhost:{port}
cms.delay startup 1 servers 1 lookup 1 full 1 suspend 1
oss.localroot {directory}/root
{more}
"""
PROXY = """
ofs.osslib libXrdPss.so
pss.origin 127.0.0.1:{origin}
"""
CACHE = PROXY + "pss.cachelib libXrdPfc.so\npfc.ram 1g\n"
Make = Callable[..., tuple[Server, Agent]]


@pytest.fixture(scope="module")
def make(authority: Authority) -> Iterator[Make]:
    """A server with the plug-in and an agent of its own; role and lines are those of its configuration."""
    built(SANITIZER)
    with ExitStack() as stack:

        def make_one(role: str = "server", lines: str = "") -> tuple[Server, Agent]:
            # HTTP at the same port: a redirection by HTTP names that of root://.
            agent, port = Agent(None, backends=""), free_port()
            stack.callback(agent.close)
            agent.start()
            more = f"scitags.socket {agent.socket}\n{lines}"
            server = Server(
                authority, more, sanitizer=SANITIZER, root_port=port, http_port=port, options=("-I", "v4"), role=role
            )
            stack.callback(server.close)
            server.start()
            return server, agent

        yield make_one


@pytest.fixture(scope="module")
def cluster(make: Make) -> Iterator[tuple[Server, Agent, Server, Agent]]:
    port = free_port()
    line = f"all.manager localhost:{port}\ncms.request delay 1 repwait 1"
    manager, server = make("manager", line), make("server", line)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for role, (one_of_two, _), more in (("manager", manager, f"xrd.port {port}"), ("server", server, "")):
            config = one_of_two.directory / "cmsd.cfg"
            config.write_text(CMSD.format(role=role, directory=one_of_two.directory, port=port, more=more))
            command = [
                "cmsd",
                "-c",
                str(config),
                "-n",
                "tests",
                "-I",
                "v4",
                "-l",
                str(one_of_two.directory / "cms.log"),
            ]
            as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            daemons.append(subprocess.Popen([*as_user, *command], cwd=one_of_two.directory))
        yield *manager, *server
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait(10)


@pytest.fixture(scope="module")
def origin(make: Make, cluster: object) -> tuple[Server, Agent]:
    """The cluster is started with it: it takes ten seconds until it answers."""
    server, agent = make()
    server.put("file", content(OCTETS))
    return server, agent


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of 5.5.3 answers reads by pages with wrong checksums, without the plug-in too; they are read again."""
    monkeypatch.setenv("XRD_CPUSEPGWRTRD", "0")


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("lines", [PROXY, CACHE], ids=["proxy", "cache"])
def test_a_proxy_tells_of_its_clients_and_the_origin_of_the_proxy(
    make: Make, origin: tuple[Server, Agent], lines: str, tmp_path: Path
) -> None:
    far, its_agent = origin
    near, agent = make("", lines.format(origin=far.root_port))
    for number in range(2):
        here(*XRDCP, near.url("root", "127.0.0.1", f"file?scitag.flow={TAG}"), tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == content(OCTETS)
        start, end = one(agent)
        assert (start.src_port, start.scitag, end.octets) == (near.root_port, TAG, (OCTETS, 0))
        if number == 1 and lines is CACHE:
            continue  # the cache has it
        start, end = one(its_agent)
        assert (start.src_port, start.scitag, end.octets) == (far.root_port, TAG, (OCTETS, 0))
    assert its_agent.new_records() == []


def test_an_upload_through_a_proxy(make: Make, origin: tuple[Server, Agent], tmp_path: Path) -> None:
    far, its_agent = origin
    near, agent = make("", PROXY.format(origin=far.root_port))
    (tmp_path / "up").write_bytes(content(OCTETS))
    here(*XRDCP, tmp_path / "up", near.url("root", "127.0.0.1", f"up?scitag.flow={TAG}"))
    assert (far.root / "up").read_bytes() == content(OCTETS)
    for server, told in ((near, agent), (far, its_agent)):
        start, end = one(told)
        assert (start.dst_port, start.scitag, end.octets) == (server.root_port, TAG, (OCTETS, 0))


def test_a_redirector_tells_nothing_and_the_server_all(cluster: tuple[Server, Agent, Server, Agent]) -> None:
    redirector, its_agent, server, agent = cluster
    server.put("file", content(OCTETS))
    here(*XRDCP, redirector.url("root", "127.0.0.1", f"file?scitag.flow={TAG}"), "/dev/null")
    start, end = one(agent)
    assert (start.scitag, end.octets) == (TAG, (OCTETS, 0))
    url = redirector.url("http", "127.0.0.1", "file")
    here("curl", "-sSf", "--location", "-H", f"SciTag: {OTHER}", "-o", "/dev/null", url)
    start, end = one(agent)
    assert (start.scitag, end.octets) == (OTHER, (OCTETS, 0))
    assert its_agent.new_records() == []
