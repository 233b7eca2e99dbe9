"""The HTTP API of a real agent, asked by a plain client."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate

from scitags_agent.sources.http import HttpSettings, HttpSource, go_event
from scitags_core.errors import ConfigError, FlowEventError
from scitags_core.flow import FlowState
from scitags_core.tag import Tag
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for

FLOW = {"src": "2001:db8::1", "src_port": 1094, "dst": "2001:db8::2", "dst_port": 43720, "scitag": 143}
GO = {
    "State": 2,
    "Protocol": 0,
    "Family": 10,
    "Src": "[2001:db8::1]:2345",
    "Dst": "[2001:db8::2]:5777",
    "Experiment": 2,
    "Activity": 15,
    "StartTs": "2026-01-31T12:00:00Z",
    "EndTs": "0001-01-01T00:00:00Z",
    "Application": "a",
}


class Api:
    """The agent's API at a port of loopback."""

    def __init__(self, agent: Agent, port: int) -> None:
        self.agent = agent
        self.port = port

    def ask(
        self, method: str, path: str, content: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            body = content if isinstance(content, bytes) else None if content is None else json.dumps(content)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def api(make_agent: Callable[..., Agent], collector: Collector) -> Api:
    return started(make_agent, collector)


def started(make_agent: Callable[..., Agent], collector: Collector, more: str = "") -> Api:
    port = free_port()
    agent = make_agent(f'{firefly_backend(collector)}[[source]]\nkind = "http"\nport = {port}\n{more}')

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    wait_for(listens, what="the API")
    return Api(agent, port)


def test_flows_are_told_listed_and_ended(api: Api, collector: Collector) -> None:
    assert api.ask("POST", "/v1/flows", [FLOW | {"state": "start"}, {"state": "start"}])[1]["accepted"] == 1
    status, table = api.ask("GET", "/v1/flows")
    assert (status, table["total"], table["flows"][0]["src_port"]) == (200, 1, 1094)
    assert api.ask("GET", "/v1/flows?from=1")[1]["flows"] == []
    assert api.ask("DELETE", "/v1/flows", FLOW) == (200, {"accepted": 1, "refused": []})
    assert api.ask("GET", "/v1/flows")[1]["total"] == 0
    first, second = collector.events(2)
    assert (first.state, second.state, second.tag) == (FlowState.START, FlowState.END, Tag(2, 15))


def test_flowd_gos_routes(api: Api, collector: Collector) -> None:
    assert "POST /flow" in api.ask("GET", "/")[1]["routes"]
    assert api.ask("POST", "/flow", GO)[0] == 200
    assert api.ask("POST", "/flow", GO | {"State": 3})[0] == 200
    assert api.ask("GET", "/dummy/start")[0] == api.ask("GET", "/dummy/end")[0] == 200
    first, second, *_ = collector.events(4)
    assert (str(first.key), first.application) == ("tcp [2001:db8::1]:2345 > [2001:db8::2]:5777", "a")
    assert (second.state, second.start_time) == (FlowState.END, first.start_time)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"State": 9}, "State 9 is none of 2"),
        ({"State": "2"}, "State '2' is none"),
        ({"Protocol": 3}, "Protocol 3 is neither"),
        ({"Src": "::1"}, "is no .address.:port|is not an IP address"),
        ({"Src": "[::1]:99999"}, "99999 is outside"),
        ({"Experiment": 2000}, "experiment 2000 is outside"),
        ({"StartTs": "yesterday"}, "StartTs 'yesterday' is not"),
    ],
)
def test_a_bad_body_of_flowd_gos_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(FlowEventError, match=said):
        go_event(GO | change)


def test_what_is_wrong_is_said_in_json(api: Api) -> None:
    assert api.ask("POST", "/v1/flows", b"{rubbish")[0] == 400
    assert api.ask("POST", "/flow", b"[]")[0] == 400
    assert api.ask("POST", "/v1/flows", {"state": "start"})[0] == 400
    assert api.ask("GET", "/v1/flows?from=-1")[1]["detail"] == "from '-1' is not a number"
    assert api.ask("GET", "/nowhere")[0] == 404
    assert api.ask("PUT", "/v1/flows")[0] == 405
    assert api.ask("POST", "/v1/flows", b"[" + b" " * (2 << 20) + b"]")[0] == 413
    assert api.ask("POST", "/v1/flows", b"no gzip", {"Content-Encoding": "gzip"})[0] == 400
    assert api.ask("GET", "/v1/status")[1]["sources"]["http"]["refused"] == 8


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"rubbish\r\n\r\n", "Invalid method"),
        (b"GET / HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"POST /v1/flows HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"POST /v1/flows HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n[", "the client left"),
    ],
)
def test_what_is_no_request_is_counted_and_takes_no_more_than_a_line_of_the_log(
    api: Api, octets: bytes, why: str
) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", api.port), 10) as connection:
            connection.sendall(octets)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    wait_for(lambda: api.agent.status()["sources"]["http"] == {"refused": 3}, what="the refusals")
    log = api.agent.log.read_text()
    assert [why in line for line in log.splitlines() if "info:" not in line] == [True] * 3


def test_health_readiness_version_reload_and_the_description(api: Api) -> None:
    assert api.ask("GET", "/v1/health") == (200, {"healthy": True})
    assert api.ask("GET", "/v1/ready") == (200, {"ready": True})
    assert api.ask("GET", "/v1/version")[1]["name"] == "scitags-agent"
    assert api.ask("POST", "/v1/reload") == (200, {"reloaded": True})
    good = api.agent.config.read_text()
    api.agent.config.write_text(good + "[tabel]\n")
    status, trouble = api.ask("POST", "/v1/reload")
    assert status == 409
    assert "tabel" in trouble["detail"]
    status, description = api.ask("GET", "/openapi.json")
    validate(description)
    routes = {route for route in api.ask("GET", "/")[1]["routes"] if " /v1" in route or " /flow" in route}
    described = {f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods}
    assert described == routes


def test_a_token_is_asked_for(make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    api = started(make_agent, collector, f'address = "0.0.0.0"\ntoken_file = "{token}"\n')
    assert api.ask("GET", "/v1/flows")[0] == 401
    assert api.ask("GET", "/v1/flows", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert api.ask("GET", "/v1/flows", headers={"Authorization": "Bearer secret"})[0] == 200
    assert api.ask("GET", "/v1/health")[0] == 200
    with pytest.raises(ConfigError, match=r"address '0.0.0.0' is not loopback: it needs a token_file"):
        HttpSource(HttpSettings(address="0.0.0.0"))
    with pytest.raises(ConfigError, match="token_file"):
        HttpSource(HttpSettings(token_file=str(tmp_path / "absent")))


def test_a_unix_socket(make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path) -> None:
    path = tmp_path / "http"
    agent = make_agent(f'{firefly_backend(collector)}[[source]]\nkind = "http"\nsocket = "{path}"\nmode = "0600"\n')
    wait_for(path.exists)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /v1/version HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in client.recv(4096)
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    wait_for(path.exists, what="a new socket")
    assert agent.stop() == 0
    assert not path.exists()


def test_silent_and_slow_clients_keep_nobody_out(make_agent: Callable[..., Agent], collector: Collector) -> None:
    api = started(make_agent, collector, "max_connections = 20\n")
    with contextlib.ExitStack() as stack:
        for number in range(100):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), 5))
            one.sendall(b"POST /v1/flows HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n["[: 20 + number])
        assert api.ask("POST", "/v1/flows", FLOW | {"state": "start"})[0] == 200
        with api.agent.pipe.open("wb", buffering=0) as pipe:
            pipe.write(b"start tcp 2001:db8::5 1 2001:db8::6 2 2 15\n")
        collector.wait(2)
    assert api.ask("GET", "/v1/flows")[1]["total"] == 2


def test_the_settings_are_typed() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"prot": 1}, HttpSettings)
