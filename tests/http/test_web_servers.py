"""The real nginx and Apache, with what `scitags http-server config` prints, and a real agent."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from scitags_core.cli import main
from tests.http.conftest import ALICE_IPV4, BOB_IPV4, Site
from tests.http.web_servers import OCTETS, start_apache, start_nginx
from tests.netns.conftest import ALICE, BOB

SCITAG = {"SciTag": "143"}


class Way(msgspec.Struct, frozen=True):
    """A server, and whether requests wait for their packets to be marked."""

    server: str
    waits: bool
    port: int


WAYS = [Way("nginx", False, 8080), Way("nginx", True, 8080), Way("apache", False, 8081), Way("apache", True, 8081)]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way.server}-{'waits' if way.waits else 'beside'}")
def way(request: pytest.FixtureRequest, whole_site: Site) -> Iterator[Way]:
    """Each server in both ways."""
    found: Way = request.param
    start = start_nginx if found.server == "nginx" else start_apache
    one = start(whole_site, waits=found.waits)
    try:
        yield found
    finally:
        one.close()


def test_a_download_is_told_and_marked(site: Site, way: Way) -> None:
    client = site.client(port=way.port)
    port = client.sock.getsockname()[1]
    client.request("GET", "/file", headers=SCITAG)
    assert len(client.getresponse().read()) == OCTETS
    ((start, end),) = site.only()
    client.close()
    assert start.ends == end.ends == (ALICE, way.port, BOB, port)
    assert (start.scitag, start.mark, end.application) == (143, 143, way.server)
    # Apache's script is not told.
    assert end.usage == ({"sent": OCTETS} if way.server == "nginx" else {})
    seen = site.tags((way.port, port))
    assert set(seen) <= {0, 143}
    if way.waits:
        # What is not marked came before the answer: the handshake, and what acknowledges the request.
        assert seen.get(0, 0) <= 2
    assert seen[143] > 0


def test_an_upload_is_told_with_the_client_as_the_source(site: Site, way: Way) -> None:
    client = site.client(port=way.port)
    port = client.sock.getsockname()[1]
    client.request("PUT", "/new", body=bytes(OCTETS), headers=SCITAG)
    assert client.getresponse().status in (201, 204)
    client.close()
    ((start, end),) = site.only()
    assert start.ends == end.ends == (BOB, port, ALICE, way.port)
    assert start.scitag == end.scitag == 143
    seen = site.tags((way.port, port))
    assert set(seen) <= {0, 143}
    assert seen[143] > 0


def test_untagged_requests_and_those_that_move_nothing_are_not_told(site: Site, way: Way) -> None:
    client = site.client(port=way.port)
    port = client.sock.getsockname()[1]
    for method, headers in (("GET", {}), ("HEAD", SCITAG), ("GET", {"SciTag": ""})):
        client.request(method, "/file", headers=headers)
        client.getresponse().read()
    client.request("PUT", "/other", body=b"x" * 1000)
    client.getresponse().read()
    client.request("DELETE", "/other", headers=SCITAG)
    client.getresponse().read()
    client.close()
    assert set(site.tags((way.port, port))) == {0}
    assert site.agent.new_records() == []


def test_tags_that_change_on_one_connection(site: Site, way: Way) -> None:
    client = site.client(port=way.port)
    tags = [143, 206, 65, 32767, 100]
    for tag in tags:
        client.request("GET", "/file", headers={"SciTag": str(tag)})
        assert len(client.getresponse().read()) == OCTETS
    client.close()
    found = site.only(len(tags))
    assert [start.scitag for start, _ in found] == tags
    assert [end.scitag for _, end in found] == tags


@pytest.mark.parametrize("value", ["64", "65536", "99999", "abc", "-5", "143x", "0x8f", "0143", "9" * 50, '1"},{"a":1'])
def test_a_tag_that_cannot_be_read_is_an_unknown_one(site: Site, way: Way, value: str) -> None:
    client = site.client(port=way.port)
    client.request("GET", "/file", headers={"SciTag": value})
    assert len(client.getresponse().read()) == OCTETS
    client.close()
    ((start, end),) = site.only()
    assert (start.scitag, start.mark, end.scitag) == (0, None, 0)


def test_the_header_of_the_passive_side_and_ipv4(site: Site, way: Way) -> None:
    client = site.client(port=way.port, host=ALICE_IPV4)
    port = client.sock.getsockname()[1]
    client.request("GET", "/file", headers={"TransferHeaderSciTag": "206"})
    client.getresponse().read()
    client.close()
    ((start, _),) = site.only()
    assert (start.ends, start.scitag) == ((ALICE_IPV4, way.port, BOB_IPV4, port), 206)


def test_who_is_kept_out_stays_out_and_the_helpers_are_nobodys(site: Site, way: Way) -> None:
    client = site.client(port=way.port)
    asked = [("/private/file", 403), ("/none", 404)]
    if way.server == "nginx":
        # Whoever asks for the helpers gets nothing, and tells the agent nothing.
        asked += [("/.scitags/start", 204), ("/.scitags/untold", 404)]
    for path, status in asked:
        client.request("GET", path, headers=SCITAG)
        response = client.getresponse()
        response.read()
        assert response.status == status, path
    client.close()
    time.sleep(0.3)
    records = site.agent.new_records()
    assert sum(one.state == "start" for one in records) == sum(one.state == "end" for one in records)


def test_a_client_that_disconnects_ends_its_transfer(site: Site, way: Way) -> None:
    client = site.client(port=way.port)
    client.request("GET", "/file", headers=SCITAG)
    response = client.getresponse()
    client.sock.shutdown(socket.SHUT_RDWR)
    response.close()
    client.close()
    ((start, end),) = site.only()
    assert (start.scitag, end.scitag) == (143, 143)


def test_an_agent_that_is_away_or_stuck_and_one_that_comes_back(site: Site, way: Way) -> None:
    """Last: the agent is another one afterwards."""

    def slowest(count: int) -> float:
        worst = 0.0
        for _ in range(count):
            began = time.monotonic()
            client = site.client(port=way.port)
            client.request("GET", "/file", headers=SCITAG)
            assert len(client.getresponse().read()) == OCTETS
            client.close()
            worst = max(worst, time.monotonic() - began)
        return worst

    assert site.agent.process is not None
    site.agent.process.send_signal(signal.SIGSTOP)
    try:
        assert slowest(5) < 5
    finally:
        site.agent.process.send_signal(signal.SIGCONT)
    site.agent.wait_for(lambda found: sum(one.state == "end" for one in found) >= 1, "what the agent heard late")
    site.agent.stop()
    assert slowest(5) < 5
    site.agent.start()
    site.agent.new_records()
    # nginx leaves one that did not answer alone for 10 seconds; its ends go to the new one at once, but for the first.
    slowest(3)


@pytest.mark.parametrize("server", ["nginx", "apache"])
@pytest.mark.parametrize("options", [[], ["--wait", "--agent", "/a.sock", "--api", "/b.sock"]])
def test_what_is_printed(server: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http-server", "config", server, *options]) == 0
    printed = capsys.readouterr().out
    assert main(["http-server", "config", server, "--into", str(tmp_path), *options]) == 0
    written = capsys.readouterr().out.split()
    assert len(written) == 3
    for path in written:
        assert Path(path).read_text() in printed
    assert (("auth_request" in printed) or ('local API = "/b.sock"' in printed)) is ("--wait" in options)
    assert ("/a.sock" in printed) is ("--wait" in options)


@pytest.mark.parametrize("server", ["nginx", "apache"])
@pytest.mark.parametrize("value", ["", "/a b", "/a\n", '/"', "/'"])
def test_a_path_that_cannot_be(server: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http-server", "config", server, "--api", value]) == 1
    assert "HTTP socket" in capsys.readouterr().err


def test_a_port_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http-server", "config", "apache", "--port", "70000"]) == 1
    assert "port 70000 is outside 1..65535" in capsys.readouterr().err
