"""Connections of this host: what the kernel says, compared with what the owners of the sockets know."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_agent import inet_diag, tcp_info
from scitags_agent.connections import Lookup, dump, survey
from scitags_agent.departures import Departures
from scitags_agent.inet_diag import CONG, INFO, SKMEMINFO, Connection
from scitags_agent.rules import cgroup2_mount
from scitags_core.flow import FlowKey
from tests.agent.sockets import Pair, connect, listener, tcp_info_of, udp_pair

DEPARTURE_SECONDS = 5.0


@pytest.fixture
def lookup() -> Iterator[Lookup]:
    with Lookup() as one:
        yield one


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


@pytest.mark.parametrize(("host", "dual"), [("::1", False), ("127.0.0.1", False), ("::", True)])
def test_both_ends_of_a_connection_are_in_the_dump_and_found(lookup: Lookup, host: str, dual: bool) -> None:
    with listener(host, dual=dual) as listening:
        pair = connect(listening, "127.0.0.1" if dual else "")
        by_key = {one.key: one for one in dump("tcp")}
        for key, end in ((pair.key, pair.client), (pair.server_key, pair.server)):
            assert by_key[key] == lookup.find(key, details=False)
            assert (by_key[key].state, by_key[key].uid) == (inet_diag.ESTABLISHED, os.getuid())
            assert by_key[key].inode == inode(end)
            assert by_key[key].message == b""
        assert pair.server_key == pair.key.reversed()
        pair.close()


def test_a_dump_by_ports_has_these_alone() -> None:
    with listener() as listening:
        pairs = [connect(listening) for _ in range(3)]
        port = listening.getsockname()[1]
        assert {one.key for one in dump("tcp", local_port=port)} == {pair.server_key for pair in pairs}
        far = pairs[1].key.src_port
        assert [one.key for one in dump("tcp", local_port=port, remote_port=far)] == [pairs[1].server_key]
        for pair in pairs:
            pair.close()


def test_what_does_not_exist_is_not_found_even_where_somebody_listens(lookup: Lookup) -> None:
    with listener() as listening, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound:
        port = listening.getsockname()[1]
        bound.bind(("::1", 0))
        assert lookup.find(FlowKey.of("::1", port, "::1", 1)) is None
        assert lookup.find(FlowKey.of("2001:db8::1", 7, "2001:db8::2", 7)) is None
        assert lookup.find(FlowKey.of("::1", bound.getsockname()[1], "::1", 1, "udp")) is None


def test_udp(lookup: Lookup) -> None:
    pair = udp_pair()
    by_key = {one.key: one for one in dump("udp")}
    for key, end in ((pair.key, pair.client), (pair.server_key, pair.server)):
        found = lookup.find(key)
        assert found is not None
        assert (found.key, found.inode, found.protocol) == (key, inode(end), "udp")
        assert by_key[key].cookie == found.cookie
    pair.close()
    assert lookup.find(pair.key) is None


def test_details_are_those_that_the_owner_is_told(lookup: Lookup) -> None:
    with listener() as listening:
        pair = connect(listening)
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        pair.transfer(100_000)
        found = lookup.find(pair.key)
        assert found is not None
        attributes = found.attributes()
        theirs, owners = tcp_info.decode(attributes[INFO]), tcp_info.decode(tcp_info_of(pair.client))
        moving = {"last_data_sent", "last_data_recv", "last_ack_recv"}
        assert {k: v for k, v in theirs.items() if k not in moving} == {
            k: v for k, v in owners.items() if k not in moving
        }
        assert attributes[CONG].rstrip(b"\0") == b"reno"
        send_buffer = int.from_bytes(attributes[SKMEMINFO][12:16], sys.byteorder)
        assert send_buffer == pair.client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        (dumped,) = dump("tcp", local_port=pair.key.src_port, details=True)
        assert dumped.attributes().keys() == attributes.keys()
        pair.close()


def test_the_cgroup_is_that_of_the_process() -> None:
    mount = cgroup2_mount()
    assert mount is not None
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line.removeprefix("0::/") for line in lines if line.startswith("0::"))
    ours = (mount / path).stat().st_ino
    with listener() as listening:
        pair = connect(listening)
        assert [one.cgroup for one in dump("tcp", local_port=pair.key.src_port)] == [ours]
        pair.close()


def test_a_survey_tells_of_the_new_ones_alone() -> None:
    with listener() as listening:
        one = connect(listening)
        known = {cookie for cookie, _ in survey("tcp", ())}
        other = connect(listening)
        seen = dict(survey("tcp", known))
        assert {x.key for x in seen.values() if x is not None} >= {other.key, other.server_key}
        assert one.key not in {x.key for x in seen.values() if x is not None}
        assert {x.cookie for x in dump("tcp", local_port=one.key.src_port)} <= seen.keys()
        one.close()
        other.close()


def wait_for_departure(departures: Departures, heard: list[Connection], key: FlowKey) -> None:
    """Until that socket was heard of; by its port, as the rest may be forgotten."""
    deadline = time.monotonic() + DEPARTURE_SECONDS
    while not any(one.local_port == key.src_port for one in heard):
        assert time.monotonic() < deadline, "the kernel did not tell of a socket that went"
        departures.read()
        time.sleep(0.002)


def departed(pair: Pair, end: Callable[[], None]) -> dict[FlowKey, Connection]:
    """What is heard of the accepted and the connecting socket of a pair that ends."""
    heard: list[Connection] = []
    departures = Departures(heard.append)
    end()
    try:
        for key in (pair.key, pair.server_key):
            wait_for_departure(departures, heard, key)
    finally:
        departures.close()
    return {one.key: one for one in heard}


def test_sockets_that_go_are_heard_of_with_all_that_they_moved() -> None:
    with listener() as listening:
        pair = connect(listening)
        pair.transfer(54_321)
        heard = departed(pair, pair.close)
        client, server = (tcp_info.decode(heard[key].attributes()[INFO]) for key in (pair.key, pair.server_key))
        assert tcp_info.payload_sent(client) == tcp_info.payload_received(server) == 54_321
        assert tcp_info.payload_sent(server) == tcp_info.payload_received(client) == 0


def test_what_moved_is_exact_while_and_after_the_ends_close(lookup: Lookup) -> None:
    with listener() as listening:
        pair = connect(listening)
        pair.transfer(1000)
        for state in (inet_diag.ESTABLISHED, inet_diag.CLOSE_WAIT):
            found = lookup.find(pair.server_key)
            assert found is not None
            assert found.state == state
            assert tcp_info.payload_received(tcp_info.decode(found.attributes()[INFO])) == 1000
            pair.client.close()
        pair.close()


def test_an_aborted_socket_has_no_far_end_any_more() -> None:
    with listener() as listening:
        pair = connect(listening)
        heard = departed(pair, pair.abort)
        assert {one.remote_port for one in heard.values() if one.local_port == pair.key.src_port} == {0}
        assert pair.server_key in heard


def test_udp_sockets_that_go_are_heard_of() -> None:
    pair = udp_pair()
    heard = departed(pair, pair.close)
    assert {pair.key, pair.server_key} <= heard.keys()


def test_too_many_departures_at_once_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scitags_agent.departures._BUFFER_OCTETS", 1)
    departures = Departures(lambda _: None)
    for _ in range(200):
        udp_pair().close()
    deadline = time.monotonic() + DEPARTURE_SECONDS
    while not departures.lost and time.monotonic() < deadline:
        departures.read()
        time.sleep(0.01)
    assert departures.lost
    departures.close()


def test_tcp_info_of_older_kernels_has_fewer_fields() -> None:
    with listener() as listening:
        pair = connect(listening)
        pair.transfer(3000)
        whole = tcp_info_of(pair.client)
        pair.close()
    info = tcp_info.decode(whole)
    seen = 0
    for octets in range(len(whole) + 1):
        some = tcp_info.decode(whole[:octets])
        assert some.items() <= info.items()
        assert len(some) >= seen
        seen = len(some)
    assert tcp_info.decode(whole + bytes(64)) == info
    # Linux 4.18 ends before bytes_sent (offset 200), 3.10 before pacing_rate (104).
    for octets, sent in ((len(whole), 3000), (200, 3001), (104, 0)):
        assert tcp_info.payload_sent(tcp_info.decode(whole[:octets])) == sent
