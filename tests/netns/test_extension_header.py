"""The tag in extension headers, set on live sockets: every data packet bears it, and all else stays as it was."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent import passed_sockets
from scitags_agent.backends import extension_header
from scitags_agent.backends.extension_header import ExtensionHeader, ExtensionHeaderSettings
from scitags_agent.live_socket import LiveSockets
from scitags_agent.passed_sockets import PassedSockets
from scitags_core import exthdr, label
from scitags_core.errors import TagError
from scitags_core.flow import FlowKey
from scitags_core.roles import Inheritance
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace, set_mtu, switch_off_segmentation
from tests.netns.watching import ATLAS, CMS, ETH_P_ALL, FLOW, OTHER, Seen, deliver, end, run, running, start

IPV6_HOPOPTS, IPV6_DSTOPTS = 54, 59  # linux/in6.h
HOP_BY_HOP, DESTINATION = 0, 60
FIXED = 40
OWN = bytes((0, 0, 1, 4, 0, 0, 0, 0))  # PadN


class Packet(msgspec.Struct, frozen=True):
    """An IPv6 packet of TCP: its extension headers in their order, and how long it is without the link layer."""

    ports: tuple[int, int]
    headers: tuple[tuple[int, Tag | None], ...]
    octets: int
    payload: int
    label: int


class Tap:
    """All packets that an interface receives or sends."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 512 << 20)
        self._socket.bind((interface, ETH_P_ALL))

    def packets(self, key: FlowKey = FLOW) -> list[Packet]:
        """Those of one direction of a connection since the last call."""
        found = []
        self._socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                octets = self._socket.recv(1 << 17)
                packet = parsed(octets) if octets[0] >> 4 == 6 else None
                if packet is not None and packet.ports == (key.src_port, key.dst_port):
                    found.append(packet)
        return found

    def close(self) -> None:
        self._socket.close()


def parsed(octets: bytes) -> Packet | None:
    kind, at = octets[6], FIXED
    headers: list[tuple[int, Tag | None]] = []
    while kind in (HOP_BY_HOP, DESTINATION):
        whole = octets[at : at + 8 * (octets[at + 1] + 1)]
        try:
            headers.append((kind, exthdr.decode(whole).tag))
        except TagError:
            headers.append((kind, None))
        kind, at = octets[at], at + len(whole)
    if kind != socket.IPPROTO_TCP:
        return None
    source, destination = struct.unpack_from("!HH", octets, at)
    payload = len(octets) - at - 4 * (octets[at + 12] >> 4)
    word = int.from_bytes(octets[:4], "big")
    return Packet((source, destination), tuple(headers), len(octets), payload, word & 0xFFFFF)


@pytest.fixture
def tap(pair: Pair) -> Any:
    one = Tap(pair.alice, "alice0")
    yield one
    one.close()


@contextlib.asynccontextmanager
async def bearing(host: Namespace, directory: Path | None = None, **settings: Any) -> AsyncIterator[ExtensionHeader]:
    """The backend, that sets headers on sockets of the host."""
    backend = ExtensionHeader(ExtensionHeaderSettings(**{"mode": "socket", "namespaces": [host.path], **settings}))
    await backend.start(Inheritance(directory=directory))
    try:
        yield backend
    finally:
        await backend.close()


async def until(backend: ExtensionHeader, counter: str, value: int = 1) -> None:
    async with asyncio.timeout(10):
        while backend.counters().get(counter, 0) != value:  # noqa: ASYNC110  # nobody would tell
            await asyncio.sleep(0.005)


def headers_of(packets: list[Packet]) -> set[tuple[tuple[int, Tag | None], ...]]:
    return {one.headers for one in packets}


@pytest.mark.parametrize(
    ("header", "kinds"),
    [("destination-options", (DESTINATION,)), ("hop-by-hop", (HOP_BY_HOP,)), ("both", (HOP_BY_HOP, DESTINATION))],
)
def test_every_packet_bears_it_until_the_end(pair: Pair, tap: Tap, header: str, kinds: tuple[int, ...]) -> None:
    async def scenario() -> None:
        async with bearing(pair.alice, header=header, linger=0) as backend:
            client, server = pair.connect(40000)
            other, other_server = pair.connect(40001)
            deliver(client, server)
            assert headers_of(tap.packets()) == {()}
            for tag in (ATLAS, CMS):  # the second takes the first one's place
                before = backend.counters().get("headers_set", 0)
                await backend.handle([start(mark=tag)])
                await until(backend, "headers_set", before + 1)
                tap.packets()
                deliver(client, server)
                assert headers_of(tap.packets()) == {tuple((kind, tag) for kind in kinds)}
            deliver(other, other_server)
            assert headers_of(tap.packets(OTHER)) == {()}
            await backend.handle([end()])
            await until(backend, "headers_removed")
            tap.packets()
            deliver(client, server)
            assert headers_of(tap.packets()) == {()}
            for one in (client, server, other, other_server):
                one.close()

    run(scenario())


@pytest.mark.parametrize("mode", ["socket", "auto"])
def test_an_open_connection_bears_it_once_the_report_is_dealt_with(
    pair: Pair, tap: Tap, bpf: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Whoever waits for the answer sends then."""
    monkeypatch.setattr(extension_header, "FIRST_LOOK_SECONDS", 10.0)

    async def scenario() -> None:
        async with bearing(pair.alice, mode=mode) as backend:
            client, server = pair.connect(40000)
            tap.packets()
            await backend.handle([start()])
            deliver(client, server)
            assert headers_of(tap.packets()) == {((DESTINATION, ATLAS),)}
            client.close()
            server.close()

    run(scenario())


def test_a_socket_that_is_closed_between_look_and_grasp_is_none() -> None:
    """No refusal of the kernel's: it is looked for again."""
    sockets = LiveSockets()
    with socket.socket() as one:
        inode = os.fstat(one.fileno()).st_ino
        # A number that nothing else is given meanwhile.
        descriptor = fcntl.fcntl(one, fcntl.F_DUPFD, 500)
    os.close(sockets.take(inode))
    os.close(descriptor)
    with pytest.raises(ProcessLookupError, match="closed it meanwhile"):
        sockets.take(inode)


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("segmentation", [True, False], ids=["TSO", "no TSO"])
def test_no_packet_outgrows_the_mtu_and_none_is_cut_in_two(pair: Pair, mtu: int, segmentation: bool) -> None:
    """16 MiB in full-size segments: as many as the kernel makes of what is left beside 8 octets of header."""
    for host, interface in ((pair.alice, "alice0"), (pair.bob, "bob0")):
        set_mtu(host, interface, mtu)
    if not segmentation:
        switch_off_segmentation(pair.alice, "alice0")
    tap = Tap(pair.alice, "alice0")
    octets = 16 << 20

    def in_part(packets: list[Packet], segment: int) -> float:
        """The share of packets that are not full."""
        sizes = [one.payload for one in packets if one.payload]
        assert sum(sizes) >= octets  # more where the kernel sent something again
        return sum(size != segment for size in sizes) / len(sizes)

    async def scenario() -> None:
        async with bearing(pair.alice) as backend:
            client, server = pair.connect(40000)
            segment = mtu - FIXED - 32  # TCP's header with time stamps
            deliver(client, server, bytes(octets))
            unmarked = tap.packets()
            await backend.handle([start()])
            await until(backend, "connections")
            tap.packets()
            shares = []
            # A busy machine makes some that are not full; what is cut in two is so in each transfer.
            for _ in range(8):
                deliver(client, server, bytes(octets))
                packets = tap.packets()
                assert headers_of(packets) == {((DESTINATION, ATLAS),)}
                if segmentation:
                    assert max(one.payload for one in packets) > mtu  # cut on the way out, by segments that leave room
                    break
                assert max(one.octets for one in packets) <= mtu
                shares.append(in_part(packets, segment - 8))
                if shares[-1] <= in_part(unmarked, segment) + 0.03:
                    break
            assert min(shares, default=0) <= in_part(unmarked, segment) + 0.03
            client.close()
            server.close()

    try:
        run(scenario())
    finally:
        tap.close()


@pytest.mark.parametrize("is_listening", [True, False])
def test_one_that_was_accepted_is_left_alone_and_goes_on(pair: Pair, tap: Tap, is_listening: bool) -> None:
    """The kernel would make no room for the header: full segments would not leave any more."""

    async def test() -> None:
        with contextlib.ExitStack() as stack:
            with pair.alice.entered():
                server = stack.enter_context(socket.create_server((ALICE, FLOW.src_port), family=socket.AF_INET6))
            with pair.bob.entered():
                client = stack.enter_context(socket.socket(socket.AF_INET6))
                client.bind((BOB, FLOW.dst_port))
                client.connect((ALICE, FLOW.src_port))
            accepted = stack.enter_context(server.accept()[0])
            if not is_listening:
                server.close()
            async with bearing(pair.alice) as backend:
                await backend.handle([start()])
                await until(backend, "unmarked_accepted")
                deliver(accepted, client)
                assert accepted.getsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, 64) == b""
        assert headers_of(tap.packets()) == {()}

    run(test())


def test_a_start_may_come_before_its_connection(pair: Pair, tap: Tap) -> None:
    async def scenario() -> None:
        async with bearing(pair.alice) as backend:
            await backend.handle([start()])
            await asyncio.sleep(0.1)
            assert backend.counters()["waiting_for_sockets"] == 1
            client, server = pair.connect(40000)
            await until(backend, "connections")
            tap.packets()
            deliver(client, server)
            assert headers_of(tap.packets()) == {((DESTINATION, ATLAS),)}
            client.close()
            server.close()

    run(scenario())


def test_label_and_header_at_once(pair: Pair, tap: Tap, bpf: None) -> None:
    async def scenario() -> None:
        async with bearing(pair.alice) as backend, running(pair.alice) as marker:
            client, server = pair.connect(40000)
            for one in (backend, marker):
                await one.handle([start()])
            await until(backend, "connections")
            tap.packets()
            seen = Seen(pair.bob, "bob0")  # behind the program
            deliver(client, server)
            assert headers_of(tap.packets()) == {((DESTINATION, ATLAS),)}
            [found] = seen.labels()[40000, 1094]
            assert label.decode(found).tag == ATLAS
            seen.close()
            client.close()
            server.close()

    run(scenario())


@pytest.mark.parametrize("option", [IPV6_DSTOPTS, IPV6_HOPOPTS])
def test_options_of_the_application_stay(pair: Pair, tap: Tap, option: int) -> None:
    async def scenario() -> None:
        async with bearing(pair.alice, header="both") as backend:
            client, server = pair.connect(40000)
            client.setsockopt(socket.IPPROTO_IPV6, option, OWN)
            await backend.handle([start()])
            await until(backend, "unmarked_own_options")
            assert backend.counters()["connections"] == 0
            tap.packets()
            deliver(client, server)
            kind = DESTINATION if option == IPV6_DSTOPTS else HOP_BY_HOP
            assert headers_of(tap.packets()) == {((kind, None),)}
            await backend.handle([end()])
            client.close()
            server.close()

    run(scenario())


def test_a_passed_socket_is_used_and_not_held(pair: Pair, tap: Tap) -> None:
    """While anybody holds a socket, the other end does not hear that it was closed."""

    async def scenario() -> None:
        backend = ExtensionHeader(ExtensionHeaderSettings(mode="socket"))  # which sees no socket of alice's by itself
        await backend.start(Inheritance())
        store = PassedSockets(10)
        client, server = pair.connect(40000)
        assert store.keep(FLOW, os.dup(client.fileno()))
        await backend.handle([start()])
        await until(backend, "connections")
        assert len(store) == 0
        tap.packets()
        deliver(client, server)
        assert headers_of(tap.packets()) == {((DESTINATION, ATLAS),)}
        client.close()
        server.settimeout(1)
        assert server.recv(1) == b""
        server.close()
        await backend.close()
        assert not store.keep(FLOW, 99)  # nobody waits any more

    run(scenario())


def test_a_passed_socket_that_nobody_takes_is_closed_soon(pair: Pair) -> None:
    async def scenario() -> None:
        client, server = pair.connect(40000)
        store = PassedSockets(10)
        passed_sockets.wait_for_sockets(store)
        assert store.keep(FLOW, os.dup(client.fileno()))
        client.close()
        began = time.monotonic()
        assert await asyncio.to_thread(server.recv, 1) == b""
        assert time.monotonic() - began < 2
        passed_sockets.wait_no_more(store)
        server.close()

    run(scenario())


def test_the_socket_of_another_process(pair: Pair, tap: Tap) -> None:
    """Taken from it for a moment; it may end when it wants."""
    program = (
        "import socket, sys\n"
        f"s = socket.socket(socket.AF_INET6); s.bind(('{ALICE}', 40000)); s.connect(('{BOB}', 1094))\n"
        "print('open', flush=True)\nsys.stdin.readline()\ns.sendall(bytes(1 << 20))\nsys.stdin.readline()\n"
    )

    async def scenario() -> None:
        with pair.bob.entered():
            listener = socket.create_server((BOB, 1094), family=socket.AF_INET6)
        command = [sys.executable, "-c", program]
        with listener, pair.alice.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
            assert one.stdin is not None
            assert one.stdout is not None
            server, _ = listener.accept()
            assert one.stdout.readline() == b"open\n"
            async with bearing(pair.alice) as backend:
                await backend.handle([start()])
                await until(backend, "connections")
                tap.packets()
                one.stdin.write(b"\n")
                one.stdin.flush()
                left = 1 << 20
                while left:
                    left -= len(server.recv(1 << 16))
                assert headers_of(tap.packets()) == {((DESTINATION, ATLAS),)}
                one.stdin.close()
                server.settimeout(5)
                assert server.recv(1) == b""
            server.close()

    run(scenario())


@pytest.mark.parametrize(("stop", "kinds"), [("remove", ()), ("leave", ((DESTINATION, ATLAS),))])
def test_what_a_clean_stop_leaves(pair: Pair, tap: Tap, tmp_path: Path, stop: str, kinds: object) -> None:
    async def scenario() -> None:
        client, server = pair.connect(40000)
        async with bearing(pair.alice, tmp_path, on_stop=stop) as backend:
            await backend.handle([start()])
            await until(backend, "connections")
        tap.packets()
        deliver(client, server)
        assert headers_of(tap.packets()) == {kinds}
        # The next agent takes up what it finds.
        async with bearing(pair.alice, tmp_path) as backend:
            await backend.handle([start(mark=CMS)])
            await until(backend, "connections")
            tap.packets()
            deliver(client, server)
            assert headers_of(tap.packets()) == {((DESTINATION, CMS),)}
        client.close()
        server.close()

    run(scenario())


def test_what_cannot_bear_one_is_counted_once(pair: Pair) -> None:
    async def scenario() -> None:
        async with bearing(pair.alice) as backend:
            for _ in range(2):
                await backend.handle(
                    [
                        start(FlowKey.of("192.0.2.1", 1, "192.0.2.2", 2)),
                        start(FlowKey.of(ALICE, 0, BOB, 2)),
                        start(FlowKey.of(ALICE, 1, BOB, 2), mark=None),
                    ]
                )
            counters = backend.counters()
            names = ("unmarked_ipv4", "unmarked_unknown_port", "unmarked_unknown_tag")
            assert [counters[name] for name in names] == [1, 1, 1]

    run(scenario())
