"""The middleware under real servers: what it tells a real agent, and what the packets then bear."""

from __future__ import annotations

import socket

import pytest

from tests.http.conftest import ALICE_IPV4, BOB_IPV4, PORT, Site
from tests.netns.conftest import ALICE, BOB

OCTETS = 3_000_000
SCITAG = {"SciTag": "143"}
# What leaves between the request and the agent's word to the kernel: of 3 MB some milliseconds.
SHARE = 0.5


def test_a_download_is_told_and_marked(site: Site, server: str) -> None:
    client = site.client()
    port = client.sock.getsockname()[1]
    client.request("GET", f"/{OCTETS}", headers=SCITAG)
    assert len(client.getresponse().read()) == OCTETS
    client.close()
    ((start, end),) = site.only()
    assert start.ends == end.ends == (ALICE, PORT, BOB, port)
    assert (start.scitag, start.mark, end.application) == (143, 143, "data service")
    assert end.octets == (OCTETS, 0)
    assert end.end_time >= end.start_time == start.start_time
    seen = site.tags((PORT, port))
    assert set(seen) <= {0, 143}
    assert seen[143] > SHARE * sum(seen.values()), seen


def test_an_upload_is_told_with_the_client_as_the_source(site: Site, server: str) -> None:
    client = site.client()
    port = client.sock.getsockname()[1]
    client.request("PUT", "/f", body=bytes(OCTETS), headers=SCITAG)
    assert int(client.getresponse().read()) == OCTETS
    client.close()
    ((start, end),) = site.only()
    assert start.ends == end.ends == (BOB, port, ALICE, PORT)
    assert end.octets == (OCTETS, len(str(OCTETS)))
    # What leaves this host of an upload is what acknowledges it.
    seen = site.tags((PORT, port))
    assert set(seen) <= {0, 143}
    # waitress hands a request over when all of it is there.
    assert server == "waitress" or seen[143] > 0, seen


def test_untagged_requests_and_those_that_move_nothing_are_not_told(site: Site, server: str) -> None:
    client = site.client()
    port = client.sock.getsockname()[1]
    client.request("GET", "/100000")
    assert len(client.getresponse().read()) == 100_000
    client.request("PUT", "/f", body=bytes(1000))
    assert client.getresponse().read() == b"1000"
    client.request("HEAD", "/5", headers=SCITAG)
    client.getresponse().read()
    client.close()
    assert set(site.tags((PORT, port))) == {0}
    assert site.agent.new_records() == []


def test_tags_that_change_on_one_connection(site: Site, server: str) -> None:
    client = site.client()
    port = client.sock.getsockname()[1]
    tags = [143, 206, 65535, 77]
    for tag in tags:
        client.request("GET", f"/200000?x=1&scitag.flow={tag}")
        assert len(client.getresponse().read()) == 200_000
    client.close()
    found = site.only(len(tags))
    assert [start.scitag for start, _ in found] == tags
    assert {start.ends for start, _ in found} == {(ALICE, PORT, BOB, port)}
    assert {end.octets for _, end in found} == {(200_000, 0)}
    # An experiment above 511 has no label.
    assert set(site.tags((PORT, port))) - {0} <= {143, 206, 77, 65535}


@pytest.mark.parametrize("value", ["64", "65536", "abc", "-5", "143x", "0x8f", "", "9" * 50])
def test_a_tag_that_cannot_be_read_is_an_unknown_one(site: Site, server: str, value: str) -> None:
    client = site.client()
    client.request("GET", "/1000", headers={"SciTag": value})
    assert len(client.getresponse().read()) == 1000
    client.close()
    ((start, _),) = site.only()
    assert (start.scitag, start.mark) == (0, None)


def test_a_client_that_disconnects_ends_its_transfer(site: Site, server: str) -> None:
    client = site.client()
    client.request("GET", "/400000000", headers=SCITAG)
    response = client.getresponse()
    response.read(200_000)
    client.sock.shutdown(socket.SHUT_RDWR)
    response.close()
    client.close()
    ((_, end),) = site.only()
    assert 200_000 <= end.octets[0] < 400_000_000


def test_an_application_that_fails_ends_its_transfer(site: Site, server: str) -> None:
    client = site.client()
    client.request("GET", "/fails", headers=SCITAG)
    assert client.getresponse().status == 500
    client.close()
    site.only()


# The others listen by IPv6 alone when told to listen at ::.
@pytest.mark.parametrize("server", ["gunicorn"], indirect=True)
def test_ipv4_is_told_as_ipv4(site: Site, server: str) -> None:
    client = site.client(host=ALICE_IPV4)
    port = client.sock.getsockname()[1]
    client.request("GET", "/1000", headers=SCITAG)
    client.getresponse().read()
    client.close()
    ((start, _),) = site.only()
    assert start.ends == (ALICE_IPV4, PORT, BOB_IPV4, port)


# waitress takes the header of a proxy away that it was not told to trust.
@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"], indirect=True)
def test_what_came_by_a_proxy_is_not_told(site: Site, server: str) -> None:
    client = site.client()
    client.request("GET", "/1000", headers={**SCITAG, "X-Forwarded-For": "2001:db8::77"})
    assert len(client.getresponse().read()) == 1000
    client.close()
    client = site.client()
    client.request("GET", "/1001", headers=SCITAG)
    client.getresponse().read()
    client.close()
    ((_, end),) = site.only()
    assert end.octets[0] == 1001


@pytest.mark.parametrize("server", ["gunicorn", "waitress"], indirect=True)
def test_a_file_that_the_server_sends_by_itself(site: Site, server: str) -> None:
    client = site.client()
    client.request("GET", "/file/500000", headers=SCITAG)
    assert len(client.getresponse().read()) == 500_000
    client.close()
    ((_, end),) = site.only()
    assert end.usage.get("sent") is None
