"""The metrics as a scraper gets them, and scrapers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scitags_agent.backends import prometheus
from scitags_agent.backends.prometheus import MAX_CONNECTIONS, PrometheusBackend, PrometheusSettings
from scitags_agent.client import AgentClient
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent, FlowKey
from scitags_core.roles import Inheritance, ShowsStatus
from scitags_core.tag import Tag
from tests.agent.conftest import Agent, wait_for
from tests.agent.events import ongoing, start
from tests.agent.test_firefly_backend import changes
from tests.agent.test_tally import using

STATUS = {
    "version": "1.2",
    "pid": 7,
    "uptime_seconds": 3.5,
    "sources": {"named_pipe": {"accepted": 5, "refused": 1}},
    "enrichers": {},
    "table": {"flows": 2, "transfers": 3},
    "backends": {"marker": {"queued": 1, "packets": {"marked": 9}}},
    "something": {"new": {"deep": 4, "text": "left out"}},
}
PRODUCTION = {"experiment": "atlas", "activity": "Production Input"}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def _built_in_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCITAGS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and content, as http.client has them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def with_backend(
    work: Callable[[PrometheusBackend], Awaitable[Any]], *events: FlowEvent, flow_series: int = 0, status: Any = None
) -> Any:
    """What work returns, done beside a backend that was told of the events."""

    async def scenario() -> Any:
        backend = prometheus.create(PrometheusSettings(port=0, flow_series=flow_series))
        if status is not None:
            backend.show(status)
        await backend.start(Inheritance())
        try:
            await backend.handle(changes(*events))
            return await asyncio.wait_for(work(backend), 60)
        finally:
            await backend.close()

    return asyncio.run(scenario())


def scraped(*events: FlowEvent, flow_series: int = 0, status: Any = None) -> Samples:
    async def work(backend: PrometheusBackend) -> Samples:
        return samples((await asyncio.to_thread(get, backend.port))[2])

    found: Samples = with_backend(work, *events, flow_series=flow_series, status=status)
    return found


def test_traffic_is_shown_by_experiment_and_activity() -> None:
    report = {"tcp_info": {"rtt": 15.0, "total_retrans": 2}}
    found = scraped(start(), using(ongoing(), 1000, 50, netlink=report), start(Tag(900, 1), transfer_id="x"))
    assert value(found, "scitags_transfers", **PRODUCTION) == 1
    assert value(found, "scitags_transfers", experiment="unknown", activity="unknown") == 1
    assert value(found, "scitags_transfers_started_total", **PRODUCTION) == 1
    assert value(found, "scitags_octets_total", **PRODUCTION, direction="sent") == 1000
    assert value(found, "scitags_octets_total", **PRODUCTION, direction="received") == 50
    assert value(found, "scitags_retransmissions_total", **PRODUCTION) == 2
    assert value(found, "scitags_rtt_seconds_bucket", **PRODUCTION, le="0.01") == 0
    assert value(found, "scitags_rtt_seconds_bucket", **PRODUCTION, le="0.02") == 1
    assert value(found, "scitags_rtt_seconds_bucket", **PRODUCTION, le="+Inf") == 1
    assert value(found, "scitags_rtt_seconds_count", **PRODUCTION) == 1
    assert value(found, "scitags_rtt_seconds_sum", **PRODUCTION) == pytest.approx(0.015)
    assert not any(name.startswith("scitags_flow_") for name, _ in found)
    assert any(name == "process_resident_memory_bytes" for name, _ in found)


def test_connections_are_shown_when_asked_and_those_beyond_are_counted() -> None:
    events = [start(key=FlowKey.of("::1", 1094, "::1", port)) for port in (1, 2, 3)]
    found = scraped(*events, using(ongoing(key=events[0].key), 7, netlink={"rtt": 3}), flow_series=2)
    first = {"protocol": "tcp", "src": "::1", "src_port": "1094", "dst": "::1", "dst_port": "1", **PRODUCTION}
    assert value(found, "scitags_flow_octets_total", **first, direction="sent") == 7
    assert value(found, "scitags_flow_rtt_seconds", **first) == pytest.approx(0.003)
    assert len([name for name, _ in found if name == "scitags_flow_retransmissions_total"]) == 2
    assert value(found, "scitags_transfers_without_series") == 1


def test_the_agents_health_is_all_that_its_status_has() -> None:
    assert isinstance(PrometheusBackend(PrometheusSettings()), ShowsStatus)
    found = scraped(status=lambda: STATUS)
    assert value(found, "scitags_agent_info", version="1.2") == 1
    assert value(found, "scitags_agent_uptime_seconds") == 3.5
    assert value(found, "scitags_agent_source", source="named_pipe", counter="accepted") == 5
    assert value(found, "scitags_agent_backend", backend="marker", counter="packets.marked") == 9
    assert value(found, "scitags_agent_status", counter="table.flows") == 2
    assert value(found, "scitags_agent_status", counter="something.new.deep") == 4
    assert ("scitags_agent_status", frozenset({("counter", "something.new.text")})) not in found


def test_a_status_that_fails_hides_no_traffic() -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError

    found = scraped(start(), status=broken)
    assert value(found, "scitags_transfers", **PRODUCTION) == 1
    assert not any(name.startswith("scitags_agent") for name, _ in found)


def test_the_format_that_is_asked_for_is_given() -> None:
    async def work(backend: PrometheusBackend) -> list[tuple[int, str, str]]:
        accepts = ("application/openmetrics-text; version=1.0.0", "text/plain; version=0.0.4", "*/*")
        return [await asyncio.to_thread(get, backend.port, Accept=accept) for accept in accepts]

    openmetrics, plain, whatever = with_backend(work, start())
    assert openmetrics[1].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics[2].endswith("# EOF\n")
    assert plain[1].startswith("text/plain; version=0.0.4")
    assert whatever[1].startswith("text/plain")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET /else HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("GET /metrics?x=1 HTTP/1.0", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("GET /metrics", 400),
        ("\x00\xff", 400),
    ],
)
def test_each_request_is_answered_by_what_it_is(request_text: str, status: int) -> None:
    async def work(backend: PrometheusBackend) -> tuple[bytes, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
        writer.write(request_text.encode("latin-1") + b"\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer, backend.counters()["requests_refused"]

    answer, refused = with_backend(work)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert refused == (0 if status == 200 else 1)
    content = answer.partition(b"\r\n\r\n")[2]
    assert (content == b"") is request_text.startswith("HEAD")


def test_scrapers_that_send_nothing_or_take_nothing_are_cut_and_stall_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(prometheus, "ANSWER_SECONDS", 1.0)
    many = [start(key=FlowKey.of("::1", 1094, "::1", port)) for port in range(1, 1001)]

    async def work(backend: PrometheusBackend) -> float:
        silent = socket.create_connection(("127.0.0.1", backend.port))
        endless = socket.create_connection(("127.0.0.1", backend.port))
        endless.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 5000)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect(("127.0.0.1", backend.port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        worst = 0.0
        deadline = time.monotonic() + 20
        while backend.counters()["scrapes_cut"] < 3:
            if time.monotonic() > deadline:
                pytest.fail(str(backend.counters()))
            before = time.monotonic()
            await backend.handle(changes(start(transfer_id="meanwhile")))
            await asyncio.sleep(0)
            worst = max(worst, time.monotonic() - before)
            await asyncio.sleep(0.01)
        status, _, text = await asyncio.to_thread(get, backend.port)
        assert status == 200
        assert len(text) > 3 << 17  # no page that the sockets' buffers would hold
        for one in (silent, endless, deaf):
            one.close()
        return worst

    # The loop is never held for as long as one of them was waited for.
    assert with_backend(work, *many, flow_series=1000) < 0.9


def test_a_crowd_of_scrapers_is_answered_or_refused() -> None:
    async def work(backend: PrometheusBackend) -> tuple[set[int], dict[str, int]]:
        idle = [socket.create_connection(("127.0.0.1", backend.port)) for _ in range(MAX_CONNECTIONS)]
        await asyncio.sleep(0.2)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(get, backend.port)
        for one in idle:
            one.close()
        await asyncio.sleep(0.2)
        crowd = await asyncio.gather(*(asyncio.to_thread(get, backend.port) for _ in range(8)))
        return {status for status, _, _ in crowd}, dict(backend.counters())

    statuses, counters = with_backend(work, start())
    assert statuses == {200}
    assert counters == {"scrapes": 8, "scrapes_cut": MAX_CONNECTIONS, "requests_refused": 1}


def test_an_agent_does_without_while_a_port_is_taken(make_agent: Callable[..., Agent]) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    taken = socket.create_server(("127.0.0.1", 0))
    taken_port = taken.getsockname()[1]
    agent = make_agent(
        f'[[backend]]\nkind = "prometheus"\nport = {port}\n'
        f'[[backend]]\nkind = "prometheus"\nname = "second"\nport = {taken_port}\n'
    )
    with AgentClient(agent.socket) as client:
        client.announce([start()], timeout=5)
    wait_for(lambda: value(samples(get(port)[2]), "scitags_transfers", **PRODUCTION) == 1, 5, "the flow")
    assert list(agent.status()["backends"]) == ["prometheus"]
    assert "backend second cannot start and is left out" in agent.log.read_text()
    assert value(samples(get(port)[2]), "scitags_agent_absent", part="backend second") == 1
    # As soon as it can, it is there, and knows what goes on.
    taken.close()
    wait_for(lambda: "second" in agent.status()["backends"], 60, "the port")
    assert agent.status()["absent"] == {}
    wait_for(lambda: value(samples(get(taken_port)[2]), "scitags_transfers", **PRODUCTION) == 1, 5, "the flow")
    assert agent.stop() == 0


def test_a_bad_address_is_named() -> None:
    with pytest.raises(ConfigError, match="'localhost' is not an IP address"):
        prometheus.create(PrometheusSettings(address="localhost"))


def test_the_library_is_not_imported_where_no_metrics_are_asked_for() -> None:
    code = "import sys, scitags_agent.plugin as p; p.provide_backends(); print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "False\n"
