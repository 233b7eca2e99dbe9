"""Billing messages as flow events, through a broker: librdkafka's own mock cluster."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Producer, TopicPartition

from scitags_core.cli.main import main
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.flow_json import decode_events
from scitags_core.tag import UNKNOWN, Tag
from scitags_dcache.billing import BillingError, BillingReader
from scitags_dcache.billing_command import Consumption, agent_writer

SECONDS = 60  # a group of consumers takes seconds to form, and a busy machine takes longer
READER = BillingReader({"atlas": 2, "cms": 3})
POOL = FlowKey("fd00:dc::1", 20005, "fd00:dc::2", 59874)


def message(**changes: Any) -> bytes:
    """One of dCache's, with the members that its source gives it."""
    whole = {
        "version": "1.0",
        "msgType": "transfer",
        "date": "2026-11-23T10:20:48.5+01:00",
        "queuingTime": 0,
        "cellName": "pool1",
        "cellType": "pool",
        "cellDomain": "poolDomain",
        "readActive": "PT0.01S",
        "localEndpoint": "[fd00:dc::1]:20005",
        "status": {"code": 0, "msg": ""},
        "session": "door:WebDAV@d:1",
        "subject": ["UidPrincipal[1000]", "FQANPrincipal[/cms]", "FQANPrincipal[/atlas/Role=production,primary]"],
        "pnfsid": "0000ABCD",
        "billingPath": "/f",
        "fileSize": 3000,
        "storageInfo": "a:b@osm",
        "transferSize": 2999,
        "transferTime": 1500,
        "isWrite": "read",
        "protocolInfo": {
            "protocol": "Http",
            "versionMajor": 1,
            "versionMinor": 1,
            "transferTag": "143",
            "port": 59874,
            "host": "fd00:dc:0:0:0:0:0:2",
        },
        "initiator": "door:WebDAV@d:1",
        "isP2p": False,
        "transferPath": "/f",
    }
    return json.dumps(whole | changes).encode()


def with_peer(**changes: Any) -> dict[str, Any]:
    peer: dict[str, Any] = json.loads(message())["protocolInfo"]
    return {"protocolInfo": peer | changes}


def test_a_download() -> None:
    start, end = READER.read(message())
    ended = datetime(2026, 11, 23, 9, 20, 48, 500000, UTC)
    assert (start.state, start.key, start.tag) == (FlowState.START, POOL, Tag(2, 15))
    assert (end.state, end.key, end.tag, end.end_time) == (FlowState.END, POOL, Tag(2, 15), ended)
    assert start.start_time == end.start_time == ended - timedelta(seconds=1.5)
    assert (end.usage, end.application) == (Usage(received=0, sent=2999), "http")
    assert start.transfer_id == end.transfer_id == "door:WebDAV@d:1 0000ABCD"


def test_an_upload_has_the_client_as_its_source() -> None:
    _, end = READER.read(message(isWrite="write"))
    assert (end.key, end.usage) == (POOL.reversed(), Usage(received=0, sent=2999))


def test_messages_of_a_real_one() -> None:
    """dCache 12.0.1: a download, an upload of a VO's, one through the door, a pull, and one with the reserved tag."""
    lines = (Path(__file__).parent / "billing_12.0.1.jsonl").read_bytes().splitlines()
    told = [
        (end.application, end.key, tuple(end.tag), end.usage)
        for start, end in map(READER.read, lines)
        if (start.state, end.state) == (FlowState.START, FlowState.END)
    ]
    pool, client, octets = "fd00:dc::1", "fd00:dc::2", Usage(received=0, sent=3_000_000)
    assert told == [
        ("http", FlowKey(pool, 20689, client, 37754), (2, 15), octets),
        ("https", FlowKey(client, 59836, pool, 22009), (2, 1), octets),
        ("http", FlowKey(pool, 0, pool, 20991), (2, 15), octets),
        ("remotehttpsdatatransfer", FlowKey(pool, 2881, pool, 34998), (2, 15), octets),
        ("http", FlowKey(pool, 20689, client, 59580), tuple(UNKNOWN), octets),
    ]


@pytest.mark.parametrize("none", ["", None])
def test_without_a_tag_the_primary_fqan_counts(none: str | None) -> None:
    assert {one.tag for one in READER.read(message(**with_peer(transferTag=none)))} == {Tag(2, 1)}
    assert READER.read(message(**with_peer(transferTag=none), subject=["FQANPrincipal[/cms]"])) == []
    assert READER.read(message(**with_peer(transferTag=none), subject=["FQANPrincipal[/nobody,primary]"])) == []


@pytest.mark.parametrize("kind", ["request", "store", "restore", "remove", "warning"])
def test_what_is_no_transfer_is_none(kind: str) -> None:
    assert READER.read(json.dumps({"msgType": kind, "date": "x"}).encode()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (with_peer(transferTag="63"), "transferTag: 63 is outside"),
        (with_peer(host="client.example.org"), "client.example.org"),
        (with_peer(port=65536), "65536"),
        ({"localEndpoint": ""}, "localEndpoint is missing"),
        ({"localEndpoint": "pool:1"}, "pool:1"),
        ({"localEndpoint": "192.0.2.1:20005"}, "two address families"),
        ({"isWrite": "both"}, "both"),
        ({"date": "yesterday"}, "yesterday"),
        ({"transferSize": -1}, "-1"),
        ({"transferTime": 1 << 60}, "longer than there was time"),
        ({"transferSize": "3000"}, "transferSize"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BillingError, match=said):
        READER.read(message(**changes))


def test_a_message_that_was_cut_is_refused_at_every_octet() -> None:
    whole = message()
    for length in range(len(whole)):
        with pytest.raises(BillingError):
            READER.read(whole[:length])


@pytest.fixture
def broker() -> Iterator[tuple[str, Producer]]:
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none", "log_level": 3})
    (one,) = producer.list_topics(timeout=10).brokers.values()
    yield f"{one.host}:{one.port}", producer
    producer.flush(5)


def committed(where: str, topic: str, group: str) -> int:
    consumer = Consumer({"bootstrap.servers": where, "group.id": group})
    try:
        return sum(one.offset for one in consumer.committed([TopicPartition(topic, 0)], timeout=10))
    finally:
        consumer.close()


def test_from_the_broker_to_the_agents_socket(
    broker: tuple[str, Producer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, producer = broker
    for one in (message(), b"{", message(), json.dumps({"msgType": "remove"}).encode(), message(isWrite="write")):
        producer.produce("billing", one, partition=0)
    assert producer.flush(10) == 0
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(path))
        agent.settimeout(10)
        assert main(["dcache", "billing", "--bootstrap", where, "--to", str(path), "--count", "5"]) == 0
        heard = [decode_events(agent.recv(1 << 16)) for _ in range(2)]
    assert heard == [(READER.read(message()), []), (READER.read(message(isWrite="write")), [])]
    told = capsys.readouterr().err.splitlines()
    assert json.loads(told[-1].removeprefix("scitags: ")) == {
        "messages": 5,
        "transfers": 2,
        "skipped": 1,
        "refused": 1,
        "repeated": 1,
    }
    assert "refused: " in told[0]
    assert committed(where, "billing", "scitags") == 5


@pytest.mark.parametrize("bad", ["novalue", "no.such.setting=1"])
def test_bad_properties_are_named(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dcache", "billing", "--bootstrap", "127.0.0.1:9", "--property", bad]) != 0
    assert bad.partition("=")[0] in capsys.readouterr().err


def consumption(where: str, group: str, write: Callable[[list[FlowEvent]], None]) -> Consumption:
    settings = {
        "bootstrap.servers": where,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.offset.store": "false",
        "log_level": "0",
    }
    return Consumption(settings, "restarts", READER, write)


@contextmanager
def running(one: Consumption) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=one.run, args=(None,), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        one.stop()
        thread.join(SECONDS)
        assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_handed_over_counts_as_read_and_nothing_else(broker: tuple[str, Producer], tmp_path: Path) -> None:
    """Who reads after it begins at what is committed. (The mock cluster lets nobody join a group again.)"""
    where, producer = broker
    for session in ("first", "second"):
        producer.produce("restarts", message(session=session), partition=0)
    assert producer.flush(10) == 0
    path = str(tmp_path / "agent.sock")
    with ExitStack() as stack:
        to_agent = stack.enter_context(agent_writer(path))
        stopped = consumption(where, "stopped", to_agent)
        with running(stopped):
            until(lambda: stopped.counters["waited"] > 0)
        assert (stopped.counters["messages"], stopped.counters["transfers"]) == (1, 0)
        assert committed(where, "restarts", "stopped") == OFFSET_INVALID

        patient = consumption(where, "patient", to_agent)
        with running(patient):
            until(lambda: patient.counters["waited"] > 0)
            agent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            agent.bind(path)
            agent.settimeout(SECONDS)
            heard = [decode_events(agent.recv(1 << 16))[0][0].transfer_id for _ in range(2)]
            until(lambda: patient.counters["transfers"] == 2)
        assert heard == ["first 0000ABCD", "second 0000ABCD"]
        assert committed(where, "restarts", "patient") == 2


def test_a_broker_that_is_away_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
    waiting = consumption(where, "waiting", print)
    with running(waiting) as thread:
        until(lambda: waiting.counters["errors"] > 0)
        assert thread.is_alive()
    assert "Kafka: " in capsys.readouterr().err


def test_without_kafkas_client_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert main(["dcache", "billing", "--bootstrap", "127.0.0.1:9"]) == 1
    assert "pip install 'scitags-suite[dcache]'" in capsys.readouterr().err
    assert main(["dcache", "config"]) == 0
