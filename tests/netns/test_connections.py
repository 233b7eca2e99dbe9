"""What the kernel reports of connections, and that it leaves everybody else's programs alone."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_agent.bpf import connections
from scitags_agent.bpf.connections import ConnectionsProgram, ConnectionsUnavailable, cgroup_root
from scitags_agent.bpf.connections_layout import (
    MAX_FILTERS,
    SETTINGS_OCTETS,
    Connection,
    Event,
    PortFilter,
    TcpState,
    pack_settings,
)
from scitags_core.flow import FlowKey
from tests.netns import programs
from tests.netns.cgroups import ALONE, MULTI, attached, cgroup, foreign, run_inside
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, add_address
from tests.netns.watching import MEGABYTE, deliver, transfer

Watch = Callable[..., ConnectionsProgram]


@pytest.fixture
def watch(bpf: None) -> Iterator[Watch]:
    """Makes programs on the root of cgroup2, inside a namespace if one is given."""
    with contextlib.ExitStack() as stack:

        def make(host: Namespace | None = None, **options: object) -> ConnectionsProgram:
            with host.entered() if host else contextlib.nullcontext():
                program = ConnectionsProgram(cgroup_root(), **options)  # type: ignore[arg-type]
            stack.callback(program.close)
            return program

        yield make


def reports(program: ConnectionsProgram, count: int) -> list[Connection]:
    """The next reports, as many as are expected; fails when they do not come."""
    found: list[Connection] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        left = deadline - time.monotonic()
        if left < 0 or not select.select([program.fileno()], [], [], left)[0]:
            pytest.fail(f"{len(found)} of {count} reports came: {found}")
        found += program.take(1000)
    assert not program.take(1000)
    return found


def test_both_ends_of_a_transfer_are_told_with_every_octet(pair: Pair, watch: Watch) -> None:
    client, server = watch(pair.alice), watch(pair.bob)
    before = time.monotonic_ns()
    transfer(pair, 40000)
    opening, active, sent = reports(client, 3)
    passive, received = reports(server, 2)
    after = time.monotonic_ns()
    key = FlowKey.of(ALICE, 40000, BOB, 1094)
    assert [one.event for one in (opening, active, sent)] == [Event.OPENING, Event.ACTIVE, Event.CLOSED]
    assert [one.event for one in (passive, received)] == [Event.PASSIVE, Event.CLOSED]
    assert {one.key for one in (opening, active, sent)} == {key}
    assert {one.key for one in (passive, received)} == {key.reversed()}
    assert opening.cookie == active.cookie == sent.cookie != passive.cookie == received.cookie
    assert (sent.sent, sent.received) == (len(MEGABYTE), 0)
    assert (received.sent, received.received) == (0, len(MEGABYTE))
    assert received.old_state is TcpState.LAST_ACK
    assert before < opening.when < active.when < sent.when < after
    assert sent.delivered >= sent.segments_sent // 64 > 0
    assert 0 < sent.min_rtt <= sent.rtt < 10_000_000
    assert opening.netns == sent.netns != received.netns
    assert client.counters() == {"written": 3, "lost": 0}


Ends = Callable[[socket.socket, socket.socket], None]


def alice_closes_first(client: socket.socket, server: socket.socket) -> None:
    client.close()
    assert server.recv(1) == b""
    server.close()


def bob_closes_first(client: socket.socket, server: socket.socket) -> None:
    server.close()
    assert client.recv(1) == b""
    client.close()


def alice_shuts_down_and_waits(client: socket.socket, server: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.close()
    assert client.recv(1) == b""
    client.close()


def alice_aborts(client: socket.socket, server: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    server.close()


def both_at_once(client: socket.socket, server: socket.socket) -> None:
    together = threading.Barrier(2)
    enders = [threading.Thread(target=lambda one=one: (together.wait(), one.close())) for one in (client, server)]
    for ender in enders:
        ender.start()
    for ender in enders:
        ender.join(10)


@pytest.mark.parametrize(
    "ends", [alice_closes_first, bob_closes_first, alice_shuts_down_and_waits, alice_aborts, both_at_once]
)
@pytest.mark.parametrize("octets", [(0, 0), (1, 0), (0, 1), (300_000, 70_001)])
def test_payload_is_counted_to_the_octet_however_it_ends(
    pair: Pair, watch: Watch, ends: Ends, octets: tuple[int, int]
) -> None:
    sent, received = octets
    watching = [watch(host, events=(Event.CLOSED,)) for host in (pair.alice, pair.bob)]
    client, server = pair.connect(40000)
    deliver(client, server, bytes(sent))
    deliver(server, client, bytes(received))
    ends(client, server)
    [of_alice], [of_bob] = (reports(program, 1) for program in watching)
    assert (of_alice.sent, of_alice.received, of_bob.sent, of_bob.received) == (sent, received, received, sent)


def test_a_connection_that_fails_is_told_of_when_openings_are(pair: Pair, watch: Watch) -> None:
    all_of_them, established = watch(pair.alice), watch(pair.alice, events=(Event.ACTIVE, Event.CLOSED))
    with pair.alice.entered(), pytest.raises(ConnectionRefusedError):
        socket.create_connection((BOB, 9))
    opening, closed = reports(all_of_them, 2)
    assert (opening.event, closed.event, closed.old_state) == (Event.OPENING, Event.CLOSED, TcpState.SYN_SENT)
    assert closed.min_rtt == 0
    assert established.counters() == {"written": 0, "lost": 0}


def test_ipv4_and_what_stands_for_it_in_ipv6_are_the_same(pair: Pair, watch: Watch) -> None:
    for host, interface, address in ((pair.alice, "alice0", "192.0.2.1"), (pair.bob, "bob0", "192.0.2.2")):
        add_address(host, interface, address, 24)
    program = watch(all_namespaces=True, events=(Event.ACTIVE, Event.PASSIVE), filters=[PortFilter(local=(7000, 7000))])
    seen = watch(pair.alice, events=(Event.ACTIVE,))
    with pair.bob.entered():
        server = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
    with server, pair.alice.entered():
        for name in ("192.0.2.2", "::ffff:192.0.2.2"):
            with socket.create_connection((name, 7000)), server.accept()[0]:
                pass
    for passive, active in zip(reports(program, 2), reports(seen, 2), strict=True):
        assert passive.key == active.key.reversed()
        assert (active.key.src, active.key.dst, active.key.dst_port) == ("192.0.2.1", "192.0.2.2", 7000)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([PortFilter(local=(40000, 40000))], {40000}),
        ([PortFilter(local=(1, 39999)), PortFilter(local=(40001, 65535))], {40001}),
        ([PortFilter(remote=(1094, 1094))], {40000, 40001}),
        ([PortFilter(local=(40000, 40000), remote=(1, 1093))], set()),
        ([PortFilter(local=(port, port)) for port in range(100, 100 + MAX_FILTERS - 1)] + [PortFilter((40001, 40001))],
         {40001}),
        ([], set()),
    ],
)  # fmt: skip
def test_ports_are_told_apart_in_the_kernel(
    pair: Pair, watch: Watch, filters: list[PortFilter], expected: set[int]
) -> None:
    program = watch(pair.alice, filters=filters)
    for port in (40000, 40001):
        transfer(pair, port, b"x")
    found = reports(program, 3 * len(expected))
    assert {one.key.src_port for one in found} == expected
    # Nobody was woken for the others.
    assert program.counters() == {"written": 3 * len(expected), "lost": 0}


def test_more_filters_than_there_is_room_for_let_everything_through() -> None:
    many = [PortFilter(local=(port, port)) for port in range(MAX_FILTERS + 1)]
    packed = pack_settings(many, Event, netns=5, has_netns_cookie=True, has_tcp_sock=True)
    assert packed == pack_settings([PortFilter()], Event, netns=5, has_netns_cookie=True, has_tcp_sock=True)
    assert len(packed) == SETTINGS_OCTETS


def test_what_finds_no_room_is_counted_and_later_reports_come(pair: Pair, watch: Watch) -> None:
    program = watch(pair.alice, ring_octets=os.sysconf("SC_PAGE_SIZE"), events=(Event.ACTIVE, Event.CLOSED))
    room = os.sysconf("SC_PAGE_SIZE") // 136
    for port in range(40000, 40000 + room):
        transfer(pair, port, b"x")
    counted = program.counters()
    assert counted["written"] + counted["lost"] == 2 * room
    assert room - 1 <= counted["written"] <= room
    first = program.take(3)
    assert [one.key.src_port for one in first] == [40000, 40000, 40001]
    # What a bound has left there still makes the descriptor readable.
    assert select.select([program.fileno()], [], [], 0)[0]
    assert len(program.take(1000)) == counted["written"] - 3
    transfer(pair, 41000, b"x")
    assert [one.key.src_port for one in reports(program, 2)] == [41000, 41000]
    assert program.counters()["lost"] == counted["lost"]


def test_only_the_processes_of_the_cgroup_are_watched(bpf: None) -> None:
    code = "import socket\ns = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname())\n"
    with cgroup() as ours, cgroup() as other, contextlib.closing(ConnectionsProgram(ours)) as program:
        run_inside(other, code)
        assert program.counters()["written"] == 0
        run_inside(ours, code)
        assert [one.event for one in reports(program, 5)[:3]] == [Event.OPENING, Event.ACTIVE, Event.PASSIVE]


def test_the_programs_of_others_stay_and_go_on(pair: Pair, watch: Watch) -> None:
    with cgroup() as group, foreign(group, MULTI):
        others = attached(group)
        with contextlib.closing(ConnectionsProgram(group)):
            assert len(attached(group)) == 2
            assert attached(group)[0] == others[0]
            with foreign(group, MULTI):
                assert len(attached(group)) == 3
            assert len(attached(group)) == 2
        assert attached(group) == others
    # Two that want the same of a socket each get it.
    one, other = watch(pair.alice), watch(pair.alice, events=(Event.CLOSED,))
    transfer(pair, 40000)
    [closed] = reports(other, 1)
    mine = reports(one, 3)[2]
    assert (mine.cookie, mine.sent, mine.event) == (closed.cookie, closed.sent, closed.event)


def test_callbacks_that_others_have_asked_for_stay_asked_for(bpf: None) -> None:
    code = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0))\n"
        "c = socket.create_connection(s.getsockname())\n"
        "assert c.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == EXPECTED, c.getsockopt(socket.SOL_SOCKET, 36)\n"
    )
    theirs = programs.CALLBACK_RETRANSMISSION
    with cgroup() as group, foreign(group, MULTI, programs.asking_for_callbacks(theirs)):
        with foreign(group, MULTI, programs.marking_with_callbacks()):
            run_inside(group, code.replace("EXPECTED", str(theirs)))
        with (
            contextlib.closing(ConnectionsProgram(group)) as program,
            foreign(group, MULTI, programs.marking_with_callbacks()),
        ):
            run_inside(group, code.replace("EXPECTED", str(theirs | programs.CALLBACK_STATE)))
            assert [one.event for one in reports(program, 5)].count(Event.CLOSED) == 2


def test_where_somebody_suffers_no_other_that_is_said_and_stays(bpf: None) -> None:
    with cgroup() as group, foreign(group, ALONE):
        others = attached(group)
        with pytest.raises(ConnectionsUnavailable, match="suffers no other"):
            ConnectionsProgram(group)
        assert attached(group) == others


@pytest.mark.parametrize(("path", "reason"), [("/nonexistent", "No such file"), ("/proc", "no cgroup of version 2")])
def test_what_is_no_cgroup_is_named(bpf: None, path: str, reason: str) -> None:
    with pytest.raises(ConnectionsUnavailable, match=f"{path}: .*{reason}"):
        ConnectionsProgram(Path(path))


def test_the_probe_agrees(bpf: None) -> None:
    assert connections.probe() is None


def test_a_socket_that_lives_on_after_the_program_harms_nobody(pair: Pair, watch: Watch) -> None:
    program = watch(pair.alice)
    client, server = pair.connect(40000)
    program.close()
    later = watch(pair.alice)
    deliver(client, server)
    client.close()
    server.close()
    # Its callback was asked for by the first; the second has the ports of it, and tells of its end.
    assert [one.event for one in reports(later, 1)] == [Event.CLOSED]
