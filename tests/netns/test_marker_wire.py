"""The marker backend on a real link: real TCP, captured at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import pytest

from scitags_agent.backends.marker import Marker, MarkerSettings
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_core import label
from scitags_core.flow import FlowChange, FlowEvent, FlowKey, FlowState
from scitags_core.tag import UNKNOWN, Tag
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, add_address, allow_big_tcp, delete_link, link, set_up

FLOW = FlowKey.of(ALICE, 40000, BOB, 1094)
OTHER = FlowKey.of(ALICE, 40001, BOB, 1094)
ATLAS = Tag(2, 15)
CMS = Tag(3, 14)
MEGABYTE = bytes(1 << 20)
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
ETH_P_ALL = 0x0003  # a tap for one protocol alone does not see what is sent
IPV6 = 6


class Seen:
    """The first words of all IPv6 TCP packets that an interface receives or sends, by their two ports."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self._socket.bind((interface, ETH_P_ALL))
        self.jumbograms = 0

    def words(self) -> dict[tuple[int, int], Counter[int]]:
        """The packets since the last call: traffic class and label (28 bits), by source and destination port."""
        found: dict[tuple[int, int], Counter[int]] = {}
        self._socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                packet = self._socket.recv(256)
                if packet[0] >> 4 != IPV6:
                    continue
                self.jumbograms += packet[4:7] == b"\0\0\0"
                at = 40
                protocol = packet[6]
                while protocol in (0, 60):
                    protocol, at = packet[at], at + 8 * (packet[at + 1] + 1)
                if protocol == socket.IPPROTO_TCP:
                    ports = int.from_bytes(packet[at : at + 2], "big"), int.from_bytes(packet[at + 2 : at + 4], "big")
                    found.setdefault(ports, Counter())[int.from_bytes(packet[:4], "big") & 0xFFFFFFF] += 1
        return found

    def labels(self) -> dict[tuple[int, int], set[int]]:
        return {ports: {word & 0xFFFFF for word in words} for ports, words in self.words().items()}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def seen(pair: Pair) -> Iterator[Seen]:
    one = Seen(pair.bob, "bob0")
    yield one
    one.close()


def start(key: FlowKey = FLOW, mark: Tag | None = ATLAS, tag: Tag | None = None) -> FlowChange:
    return FlowChange(FlowEvent(state=FlowState.START, key=key, tag=tag or mark or UNKNOWN), 1, mark)


def end(key: FlowKey = FLOW, mark: Tag | None = None) -> FlowChange:
    return FlowChange(FlowEvent(state=FlowState.END, key=key, tag=ATLAS), 1 if mark else 0, mark)


def transfer(pair: Pair, source_port: int, octets: bytes = MEGABYTE) -> None:
    """A whole connection, alice sending, closed from both sides."""
    client, server = pair.connect(source_port)
    deliver(client, server, octets)
    client.close()
    assert server.recv(1) == b""
    server.close()


def deliver(client: socket.socket, server: socket.socket, octets: bytes = MEGABYTE) -> None:
    sender = threading.Thread(target=client.sendall, args=(octets,))
    sender.start()
    left = len(octets)
    while left:
        left -= len(server.recv(min(left, 1 << 16)))
    sender.join(20)


@contextlib.asynccontextmanager
async def running(host: Namespace, **settings: Any) -> Any:
    marker = Marker(MarkerSettings(**settings))
    with host.entered():
        await marker.start()
    try:
        yield marker
    finally:
        with host.entered():
            await marker.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


@pytest.fixture(params=["tcx", "clsact"])
def way(request: pytest.FixtureRequest, bpf: None) -> str:
    return str(request.param)


def test_every_packet_of_a_flow_from_syn_to_fin_and_none_of_another(pair: Pair, seen: Seen, way: str) -> None:
    async def scenario() -> None:
        async with running(pair.alice, attach=way) as marker:
            await marker.handle([start()])
            transfer(pair, 40000)
            transfer(pair, 40001)
            words = seen.words()
            marked, untouched = words[40000, 1094], words[40001, 1094]
            assert len(marked) == 1
            [word] = marked
            assert label.decode(word).tag == ATLAS
            assert marked.total() > 5
            assert set(untouched) == {0}
            # Bob has no agent: what he sends is not marked.
            assert set(words[1094, 40000]) == {0}
            assert marker.counters()["packets_marked"] == marked.total()

    run(scenario())


def test_traffic_class_and_ecn_are_kept(pair: Pair, seen: Seen, way: str) -> None:
    pair.alice.set_sysctl("ipv4/tcp_ecn", "1")
    pair.bob.set_sysctl("ipv4/tcp_ecn", "1")

    async def scenario() -> None:
        async with running(pair.alice, attach=way) as marker:
            await marker.handle([start()])
            with pair.bob.entered():
                server = socket.create_server((BOB, 1094), family=socket.AF_INET6)
            with pair.alice.entered():
                client = socket.socket(socket.AF_INET6)
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0xB8)  # DSCP EF
            client.bind((ALICE, 40000))
            client.connect((BOB, 1094))
            accepted, _ = server.accept()
            deliver(client, accepted)
            for one in (client, accepted, server):
                one.close()
            words = seen.words()[40000, 1094]
            classes = {word >> 20 for word in words}
            assert 0xBA in classes  # EF, and ECT(0) on data
            assert classes <= {0xB8, 0xBA}
            assert {label.decode(word & 0xFFFFF).tag for word in words} == {ATLAS}

    run(scenario())


def test_the_mark_follows_its_users_and_keeps_its_entropy(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, linger=0.0) as marker:
            client, server = pair.connect(40000)
            labels = []
            for change in (start(), start(mark=CMS), end(mark=ATLAS), end(), start()):
                await marker.handle([change])
                seen.words()
                deliver(client, server, b"x" * 1000)
                [value] = seen.labels()[40000, 1094]
                labels.append(value)
            client.close()
            server.close()
        atlas, cms, again, none, later = labels
        assert (label.decode(atlas).tag, label.decode(cms).tag) == (ATLAS, CMS)
        assert label.decode(atlas).entropy == label.decode(cms).entropy
        assert again == atlas
        assert none == 0
        assert label.decode(later).tag == ATLAS  # the same 5-tuple once more

    run(scenario())


def test_the_mark_lingers_and_a_start_within_that_time_keeps_it(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, linger=0.3) as marker:
            client, server = pair.connect(40000)
            await marker.handle([start()])
            deliver(client, server, b"x")
            await marker.handle([end()])
            deliver(client, server, b"x")
            await marker.handle([start()])
            await asyncio.sleep(0.5)
            deliver(client, server, b"x")
            assert len(seen.labels()[40000, 1094] - {0}) == 1
            await marker.handle([end()])
            await asyncio.sleep(0.5)
            seen.words()
            deliver(client, server, b"x")
            assert seen.labels()[40000, 1094] == {0}
            client.close()
            server.close()
            assert marker.counters()["connections"] == 0

    run(scenario())


def test_a_connection_reported_from_both_its_ends(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, linger=0.0) as marker:
            client, server = pair.connect(40000)
            await marker.handle([start(FLOW), start(FLOW.reversed(), CMS), end(FLOW)])
            seen.words()
            deliver(client, server, b"x")
            [value] = seen.labels()[40000, 1094]
            assert label.decode(value).tag == CMS
            await marker.handle([end(FLOW.reversed())])
            seen.words()
            deliver(client, server, b"x")
            assert seen.labels()[40000, 1094] == {0}
            client.close()
            server.close()

    run(scenario())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (start(FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)), "unmarked_ipv4"),
        (start(FlowKey.of("::ffff:192.0.2.1", 1, "::ffff:192.0.2.2", 2)), "unmarked_ipv4"),
        (start(FlowKey.of(ALICE, 0, BOB, 2)), "unmarked_unknown_port"),
        (start(mark=Tag(512, 1)), "unmarked_experiment_above_511"),
        (start(mark=None, tag=UNKNOWN), "unmarked_unknown_tag"),
    ],
)
def test_what_cannot_be_marked_is_counted_by_reason(pair: Pair, bpf: None, change: FlowChange, reason: str) -> None:
    async def scenario() -> None:
        async with running(pair.alice) as marker:
            await marker.handle([change])
            assert marker.counters()[reason] == 1
            assert marker.counters()["connections"] == 0

    run(scenario())


def test_more_flows_than_there_is_room_for(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, max_flows=8) as marker:
            changes = [start(FlowKey.of(ALICE, port, BOB, 1094)) for port in range(1, 2000)]
            await marker.handle(changes)
            counters = marker.counters()
            assert counters["unmarked_table_full"] > 0
            assert counters["connections"] + counters["unmarked_table_full"] == len(changes)

    run(scenario())


def test_interfaces_come_and_go(pair: Pair, seen: Seen, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, rescan=0.05) as marker:
            assert marker.counters()["interfaces"] == 1
            with pair.alice.entered():
                await asyncio.to_thread(link, pair.alice, "late0", pair.bob, "late1")
                await settle(lambda: marker.counters()["interfaces"] == 2)
                await asyncio.to_thread(delete_link, pair.alice, "late0")
                await settle(lambda: marker.counters()["interfaces"] == 1)

    run(scenario())


async def settle(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("did not settle within 4 s")


@pytest.mark.parametrize("interfaces", [["no-such-interface"], ["lo*"], []])
def test_no_interface_is_an_error_that_names_the_patterns(pair: Pair, bpf: None, interfaces: Sequence[str]) -> None:
    async def scenario() -> None:
        with pytest.raises(MarkerUnavailable, match="no interface could be attached to"):
            async with running(pair.alice, interfaces=list(interfaces)):
                pass

    run(scenario())


def test_loopback_is_taken_when_it_is_named(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, interfaces=["lo"]) as marker:
            assert marker.counters()["interfaces"] == 1

    run(scenario())


def test_a_device_without_link_layer(pair: Pair, bpf: None) -> None:
    """A tun device: its packets begin with the IP header."""
    with pair.alice.entered():
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    add_address(pair.alice, "tun0", "2001:db8:7::1", 64)
    set_up(pair.alice, "tun0")
    flow = FlowKey.of("2001:db8:7::1", 40000, "2001:db8:7::2", 1094, "udp")

    async def scenario() -> None:
        async with running(pair.alice, interfaces=["tun0"]) as marker:
            await marker.handle([start(flow)])
            with pair.alice.entered():
                sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            with sender:
                sender.bind(("2001:db8:7::1", 40000))
                for port in (1094, 1095):
                    sender.sendto(b"x", ("2001:db8:7::2", port))
            found = {}
            for packet in read_packets(tun):
                if packet[6] == socket.IPPROTO_UDP:
                    found[int.from_bytes(packet[42:44], "big")] = int.from_bytes(packet[:4], "big") & 0xFFFFF
            assert found[1095] == 0
            assert label.decode(found[1094]).tag == ATLAS

    try:
        run(scenario())
    finally:
        os.close(tun)


def read_packets(tun: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield os.read(tun, 2048)


def test_big_tcp_packets_are_labelled_too(pair: Pair, bpf: None) -> None:
    """Packets above 64 KB have a jumbo header between IPv6 and TCP (RFC 2675)."""
    for host, interface in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        allow_big_tcp(host, interface)
    tap = Seen(pair.alice, "alice0")

    async def scenario() -> None:
        async with running(pair.alice) as marker:
            await marker.handle([start()])
            client, server = pair.connect(40000)
            deliver(client, server, bytes(64 << 20))
            words = tap.words()[40000, 1094]
            client.close()
            server.close()
            assert tap.jumbograms > 0, "the kernel made no packet above 64 KB"
            assert {label.decode(word & 0xFFFFF).tag for word in words} == {ATLAS}

    try:
        run(scenario())
    finally:
        tap.close()
