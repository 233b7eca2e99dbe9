"""Middleware whose requests wait until their packets are marked."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from tests.http.conftest import PORT, SERVERS, Service, Site
from tests.http.test_middleware import OCTETS, SCITAG


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn", "waitress"])
def test_where_requests_wait_every_packet_of_data_is_marked(site: Site, name: str) -> None:
    one = Service(site, [sys.executable, "-m", *SERVERS[name]], {"SCITAGS_WAIT": "1"})
    try:
        one.wait_until_it_listens()
        for _ in range(3):
            site.seen.words()
            client = site.client()
            port = client.sock.getsockname()[1]
            client.request("GET", f"/{OCTETS}", headers=SCITAG)
            assert len(client.getresponse().read()) == OCTETS
            client.close()
            site.only()
            seen = site.tags((PORT, port))
            # What is not marked is the answer to the SYN, and what acknowledges the request.
            assert seen.get(0, 0) <= 2, seen
            assert seen[143] > 30
    finally:
        one.close()


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
def test_a_stuck_agent_is_waited_for_once(site: Site, name: str) -> None:
    one = Service(site, [sys.executable, "-m", *SERVERS[name]], {"SCITAGS_WAIT": "0.5"})
    assert site.agent.process is not None
    try:
        one.wait_until_it_listens()
        site.agent.process.send_signal(signal.SIGSTOP)
        took = []
        for _ in range(5):
            began = time.monotonic()
            client = site.client()
            client.request("GET", "/1000", headers=SCITAG)
            assert len(client.getresponse().read()) == 1000
            client.close()
            took.append(time.monotonic() - began)
        assert sum(one >= 0.5 for one in took) == 1, took
    finally:
        site.agent.process.send_signal(signal.SIGCONT)
        one.close()
    site.only(5)
