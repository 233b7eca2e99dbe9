"""Static labels on a real link: everything that leaves, captured at the other end."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scitags_agent.backends.marker import KIND, Marker, MarkerSettings
from scitags_core import label
from scitags_core.errors import ConfigError
from scitags_core.roles import Inheritance
from scitags_core.strict import convert
from scitags_core.tag import Tag
from tests.netns.conftest import BOB, Pair
from tests.netns.namespaces import Namespace, add_address, link
from tests.netns.test_marker_wire import settle
from tests.netns.watching import ATLAS, CMS, ETH_P_ALL, Seen, end, run, running, start, transfer

ICMPV6 = socket.IPPROTO_ICMPV6
ICMP6_FILTER = 1
STATIC = [{"experiment": 2, "activity": 15}]


class Arrivals:
    """Every IPv6 packet that comes in by an interface: its destination, its protocol, its label."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self._socket.bind((interface, ETH_P_ALL))

    def take(self) -> Counter[tuple[str, int, int]]:
        """Those since the last call."""
        found: Counter[tuple[str, int, int]] = Counter()
        self._socket.settimeout(0.2)
        with suppress(TimeoutError):
            while True:
                packet, (_, _, direction, *_) = self._socket.recvfrom(256)
                if packet[0] >> 4 == 6 and direction != socket.PACKET_OUTGOING:
                    where = socket.inet_ntop(socket.AF_INET6, packet[24:40])
                    found[where, packet[6], int.from_bytes(packet[:4], "big") & 0xFFFFF] += 1
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def arrivals(pair: Pair) -> Iterator[Arrivals]:
    one = Arrivals(pair.bob, "bob0")
    one.take()  # what an interface says when it comes up
    yield one
    one.close()


def settings(static: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Through the checks that a configuration goes through."""
    made = convert({"static": static, **more}, MarkerSettings, "test")
    return {name: getattr(made, name) for name in made.__struct_fields__}


def send_udp(pair: Pair, destination: str = BOB, *, octets: int = 10, count: int = 1) -> None:
    with pair.alice.entered():
        one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with one:
        for _ in range(count):
            one.sendto(bytes(octets), (destination, 9))


def ping(pair: Pair) -> None:
    with pair.alice.entered():
        one = socket.socket(socket.AF_INET6, socket.SOCK_RAW, ICMPV6)
    with one:
        one.settimeout(5)
        one.setsockopt(ICMPV6, ICMP6_FILTER, b"\xff" * 16 + b"\xfd" + b"\xff" * 15)  # only echo replies
        one.sendto(b"\x80\0\0\0\0\1\0\1", (BOB, 0))
        one.recv(100)


@pytest.mark.parametrize("way", ["tcx", "clsact"])
def test_everything_that_leaves_bears_the_tag(pair: Pair, arrivals: Arrivals, bpf: None, way: str) -> None:
    async def scenario() -> None:
        async with running(pair.alice, **settings(STATIC, attach=way)) as marker:
            transfer(pair, 40000)
            transfer(pair, 40001)
            send_udp(pair, count=7)
            send_udp(pair, octets=5000)  # in four fragments
            with suppress(TimeoutError):
                ping(pair)
            before = marker.counters()["packets_static"]
            everything = arrivals.take()
            # What an interface says of itself when it comes up may have left before the program was there.
            assert {protocol for _, protocol, value in everything if not value} <= {0, ICMPV6}
            found = Counter({one: count for one, count in everything.items() if one[2]})
            assert {label.decode(value).tag for _, _, value in found} == {ATLAS}
            protocols: Counter[int] = Counter()
            for (_, protocol, _), count in found.items():
                protocols[protocol] += count
            assert protocols[socket.IPPROTO_UDP] == 7
            assert protocols[socket.IPPROTO_FRAGMENT] == 4
            assert protocols[socket.IPPROTO_TCP] > 20
            assert protocols[ICMPV6] > 0
            counters = marker.counters()
            # The host may say something by itself at any time.
            assert before <= found.total() <= counters["packets_static"]
            assert counters["packets_marked"] == 0
        transfer(pair, 40002)
        assert {value for _, protocol, value in arrivals.take() if protocol == socket.IPPROTO_TCP} == {0}

    run(scenario())


def test_a_flow_s_own_mark_wins_and_the_same_tag_changes_nothing(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, **settings(STATIC, linger=0.0)) as marker:
            client, server = pair.connect(40000)
            await marker.handle([start()])
            client.sendall(b"x" * 10_000)
            await marker.handle([end()])
            client.sendall(b"x" * 10_000)
            # One label for the life of the flow, whoever knew of it when.
            [word] = seen.words()[40000, 1094]
            assert label.decode(word & 0xFFFFF).tag == ATLAS
            await marker.handle([start(mark=CMS)])
            client.sendall(b"x" * 10_000)
            own = {one & 0xFFFFF for one in seen.words()[40000, 1094]}
            assert {label.decode(one).tag for one in own} <= {ATLAS, CMS}
            assert CMS in {label.decode(one).tag for one in own}
            # The entropy stays, so that its path does.
            assert {label.decode(one).entropy for one in own} == {label.decode(word & 0xFFFFF).entropy}
            client.close()
            server.close()

    run(scenario())


def test_networks_and_interfaces_are_told_apart(pair: Pair, arrivals: Arrivals, bpf: None) -> None:
    add_address(pair.bob, "bob0", "2001:db8::3", 64)
    link(pair.alice, "alice1", pair.bob, "bob1")
    add_address(pair.alice, "alice1", "2001:db8:1::1", 64)
    add_address(pair.bob, "bob1", "2001:db8:1::2", 64)
    static = [
        {"experiment": 2, "activity": 15, "network": f"{BOB}/128"},
        {"experiment": 3, "activity": 14, "network": f"{BOB}/128"},  # too late
        {"experiment": 3, "activity": 14, "interface": "alice[1-9]"},
    ]

    async def scenario() -> None:
        other = Arrivals(pair.bob, "bob1")
        async with running(pair.alice, **settings(static)):
            for destination in (BOB, "2001:db8::3", "2001:db8:1::2"):
                send_udp(pair, destination, count=3)
            udp = {
                where: (value, count) for (where, protocol, value), count in arrivals.take().items() if protocol == 17
            }
            assert label.decode(udp[BOB][0]).tag == ATLAS
            assert udp["2001:db8::3"] == (0, 3)
            [(value, count)] = [
                (value, count) for (_, protocol, value), count in other.take().items() if protocol == 17
            ]
            assert (label.decode(value).tag, count) == (CMS, 3)
        other.close()

    run(scenario())


def test_interfaces_that_come_later_mark_from_their_first_packet(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, **settings(STATIC, rescan=0.05)) as marker:
            with pair.alice.entered():
                await asyncio.to_thread(link, pair.alice, "alice1", pair.bob, "bob1")
                await asyncio.to_thread(add_address, pair.alice, "alice1", "2001:db8:1::1", 64)
                await asyncio.to_thread(add_address, pair.bob, "bob1", "2001:db8:1::2", 64)
                await settle(lambda: marker.counters()["interfaces"] == 2)
            late = Arrivals(pair.bob, "bob1")
            send_udp(pair, "2001:db8:1::2", count=5)
            [(value, count)] = [(value, count) for (_, protocol, value), count in late.take().items() if protocol == 17]
            assert (label.decode(value).tag, count) == (ATLAS, 5)
            late.close()

    run(scenario())


def test_the_tag_stays_without_an_agent_and_the_next_agent_changes_it(
    pair: Pair, arrivals: Arrivals, bpf: None, tmp_path: Path
) -> None:
    inheritance = Inheritance(directory=tmp_path)

    def tags() -> set[Tag | None]:
        send_udp(pair, count=3)
        values = [value for (_, protocol, value), _ in arrivals.take().items() if protocol == socket.IPPROTO_UDP]
        return {label.decode(value).tag if value else None for value in values}

    async def scenario() -> None:
        for static, stop, then in (
            (ATLAS, "leave", {ATLAS}),
            (CMS, "leave", {CMS}),
            (None, "leave", {None}),
            (CMS, "remove", {None}),
        ):
            given = [] if static is None else [{"experiment": static.experiment, "activity": static.activity}]
            marker = Marker(MarkerSettings(**settings(given, on_stop=stop)))
            with pair.alice.entered():
                await marker.start(inheritance)
            assert tags() == {static}
            with pair.alice.entered():
                await marker.close()
            assert tags() == then

    run(scenario())


@pytest.mark.parametrize(
    ("static", "reason"),
    [
        ({"network": "2001:db8::1/64"}, "has host bits set"),
        ({"network": "192.0.2.0/24"}, "192.0.2.0"),
        ({"network": "everywhere"}, "'everywhere'"),
        ({"experiment": 600}, "600"),
        ({"experiment": "no such thing"}, "no such thing"),
        ({"activity": 64}, "64"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(static: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"static: .*{reason}"):
        KIND.create(convert({"static": [{**STATIC[0], **static}]}, MarkerSettings, "test"))


def test_tags_may_be_named() -> None:
    made = Marker(convert({"static": [{"experiment": "atlas", "activity": "perfSONAR"}]}, MarkerSettings, "test"))
    assert [label.decode(one.label).tag for one in made._static] == [(2, 2)]
