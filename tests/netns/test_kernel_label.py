"""Labels that the kernel writes itself: from the SYN on, on connections that are open, through time-outs, and back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from scitags_agent import socket_labels
from scitags_agent.backends.marker import Marker, MarkerSettings, StaticMark
from scitags_agent.bpf import kernel_label
from scitags_agent.bpf.attach import tcx_programs
from scitags_agent.bpf.kernel_label import KernelLabels, SocketReport, SocketState, why_not_by_sysctl
from scitags_agent.bpf.layout import pack_key
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_core import label
from scitags_core.flow import FlowKey
from scitags_core.roles import FlowMark
from tests.netns import programs
from tests.netns.cgroups import MULTI, cgroup, foreign
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import Namespace
from tests.netns.watching import ATLAS, CMS, FLOW, OTHER, Seen, deliver, end, run, running, start, transfer

LABEL, OTHER_LABEL = 0x12345, 0x54321
SO_TXREHASH = 74  # asm-generic/socket.h
IPV6_FLOWLABEL_MGR, IPV6_FLOWINFO_SEND, IPV6_AUTOFLOWLABEL = 32, 33, 70  # linux/in6.h
IPV6_FL_A_GET, IPV6_FL_F_CREATE, IPV6_FL_S_ANY = 0, 1, 255
NUD_PERMANENT = 0x80
FIRST, SECOND = pack_key(FLOW), pack_key(OTHER)


@pytest.fixture
def kernel(hosts: Pair) -> Iterator[KernelLabels]:
    with hosts.alice.entered():
        labels = KernelLabels(100)
    yield labels
    labels.close()


def walk(pair: Pair, kernel: KernelLabels) -> dict[bytes, SocketReport]:
    with pair.alice.entered():
        return {one.key: one for one in kernel.walk()}


def test_a_new_connection_bears_it_from_the_syn_on(hosts: Pair, kernel: KernelLabels, seen: Seen) -> None:
    kernel.put(FIRST, LABEL)
    transfer(hosts, 40000)
    transfer(hosts, 40001)
    labels = seen.labels()
    assert labels[40000, 1094] == {LABEL}
    assert LABEL not in labels[40001, 1094]
    assert LABEL not in labels[1094, 40000]


def test_a_listener_s_connection_bears_it_once_it_is_open(hosts: Pair, seen: Seen) -> None:
    with hosts.bob.entered(), contextlib.closing(KernelLabels(10)) as kernel:
        kernel.put(pack_key(FLOW.reversed()), LABEL)
        client, server = hosts.connect(40000)
        seen.words()  # the SYN-ACK leaves before the kernel has a socket to ask
        deliver(server, client)
        assert seen.labels()[1094, 40000] == {LABEL}
        client.close()
        server.close()


@pytest.mark.parametrize("sends", [True, False], ids=["sends", "only acknowledges"])
def test_an_open_connection_bears_it_from_its_next_packet_on(
    hosts: Pair, kernel: KernelLabels, seen: Seen, sends: bool
) -> None:
    client, server = hosts.connect(40000)
    deliver(client, server)
    before = seen.labels()[40000, 1094]
    assert len(before) == 1
    assert LABEL not in before
    kernel.put(FIRST, LABEL)
    assert walk(hosts, kernel)[FIRST].state == SocketState.WAITING
    deliver(*((client, server) if sends else (server, client)))
    found = seen.labels()
    assert found[40000, 1094] == {LABEL}
    assert LABEL not in found[1094, 40000]
    report = walk(hosts, kernel)[FIRST]
    assert (report.state, report.callbacks) == (SocketState.LABELLED, 0)
    client.close()
    server.close()


def test_another_label_in_its_place_and_back(hosts: Pair, kernel: KernelLabels, seen: Seen) -> None:
    client, server = hosts.connect(40000)
    before = client.getsockopt(socket.SOL_SOCKET, SO_TXREHASH)
    for one in (LABEL, OTHER_LABEL):
        kernel.put(FIRST, one)
        walk(hosts, kernel)
        seen.words()
        deliver(client, server)
        assert seen.labels()[40000, 1094] == {one}
    assert client.getsockopt(socket.SOL_SOCKET, SO_TXREHASH) == 0
    kernel.remove(FIRST)
    assert walk(hosts, kernel)[FIRST].label == 0
    seen.words()
    deliver(client, server)
    [found] = seen.labels()[40000, 1094]
    assert found not in (LABEL, OTHER_LABEL)
    assert walk(hosts, kernel) == {}
    assert client.getsockopt(socket.SOL_SOCKET, SO_TXREHASH) == before
    client.close()
    server.close()


@pytest.mark.parametrize("labelled", [True, False])
def test_one_label_through_time_outs(hosts: Pair, kernel: KernelLabels, seen: Seen, labelled: bool) -> None:
    """Bob no longer answers: the kernel sends again and again, by itself with another label each time."""
    if labelled:
        kernel.put(FIRST, LABEL)
    client, server = hosts.connect(40000)
    deliver(client, server)
    with hosts.bob.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname="bob0")[0]
        hardware = netlink.get_links(index)[0].get("address")
        netlink.addr("del", index=index, address=BOB, prefixlen=64)
    with hosts.alice.entered(), IPRoute() as netlink:
        index = netlink.link_lookup(ifname="alice0")[0]
        netlink.neigh("replace", dst=BOB, lladdr=hardware, ifindex=index, state=NUD_PERMANENT)
    seen.words()
    client.sendall(b"x" * 1000)
    time.sleep(2.2)  # at least three time-outs: 0.2, 0.4 and 0.8 s
    words = seen.words()[40000, 1094]
    assert words.total() >= 4
    assert ({word & 0xFFFFF for word in words} == {LABEL}) is labelled
    assert (len(words) == 1) is labelled
    client.close()
    server.close()


def test_what_others_ask_of_the_socket_stays(hosts: Pair, seen: Seen) -> None:
    """Another's sock_ops program has asked for callbacks, the one that we use among them."""
    theirs = programs.CALLBACK_EACH_PACKET | programs.CALLBACK_RETRANSMISSION
    with (
        cgroup() as group,
        foreign(group, MULTI, programs.asking_for_callbacks(theirs)),
        hosts.alice.entered(),
        contextlib.closing(KernelLabels(10, cgroup=group)) as kernel,
    ):
        home = group.parent / Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
        (group / "cgroup.procs").write_text("0")  # a socket belongs to the group that it was made in
        try:
            client, server = hosts.connect(40000)
        finally:
            (home / "cgroup.procs").write_text("0")
        kernel.put(FIRST, LABEL)
        assert walk(hosts, kernel)[FIRST].state == SocketState.WAITING
        deliver(client, server)
        report = walk(hosts, kernel)[FIRST]
        assert (report.state, report.callbacks) == (SocketState.LABELLED, theirs)
        seen.words()
        deliver(client, server)
        assert seen.labels()[40000, 1094] == {LABEL}
        client.close()
        server.close()


@contextlib.contextmanager
def unlabelled(hosts: Pair, chosen: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Alice's socket, not connected yet, and bob's listener: the kernel makes no label for the connection of the two.

    chosen is the label that the application has chosen itself; with 0 it wants none of the kernel's.
    """
    with hosts.bob.entered():
        listener = socket.create_server((BOB, 1094), family=socket.AF_INET6)
    with hosts.alice.entered():
        client = socket.socket(socket.AF_INET6)
    request = struct.pack(
        "=16sIBBHHHI", socket.inet_pton(socket.AF_INET6, BOB), socket.htonl(chosen), IPV6_FL_A_GET, IPV6_FL_S_ANY,
        IPV6_FL_F_CREATE, 0, 0, 0,
    )  # fmt: skip
    with client, listener:
        if chosen:
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, request)
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1)
        else:
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0)
        client.bind((ALICE, 40000))
        yield client, listener


OWN = 0xABCDE
STATES = [(OWN, SocketState.OWN_LABEL), (0, SocketState.NO_LABEL)]


@pytest.mark.parametrize("known", ["before", "once it is open"])
@pytest.mark.parametrize(("chosen", "state"), STATES, ids=["its own", "none"])
def test_what_the_application_chose_stays(
    hosts: Pair, kernel: KernelLabels, seen: Seen, chosen: int, state: SocketState, known: str
) -> None:
    with unlabelled(hosts, chosen) as (client, listener):
        before = client.getsockopt(socket.SOL_SOCKET, SO_TXREHASH)
        if known == "before":
            kernel.put(FIRST, LABEL)
        client.connect((BOB, 1094, chosen))
        server, _ = listener.accept()
        with server:
            kernel.put(FIRST, LABEL)
            assert walk(hosts, kernel)[FIRST].state == state
            deliver(client, server)
            assert seen.labels()[40000, 1094] == {chosen}
            assert client.getsockopt(socket.SOL_SOCKET, SO_TXREHASH) == before


def test_sockets_of_another_namespace_are_not_touched(hosts: Pair, seen: Seen) -> None:
    """The same connection, seen from alice; the agent is bob's."""
    with hosts.bob.entered(), contextlib.closing(KernelLabels(10)) as kernel:
        kernel.put(FIRST, LABEL)
        transfer(hosts, 40000)
        assert LABEL not in seen.labels()[40000, 1094]
        assert kernel.walk() == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"auto_flowlabels": "1", "flowlabel_state_ranges": "0"}, None),
        ({"auto_flowlabels": "3", "flowlabel_state_ranges": "0"}, None),
        ({"auto_flowlabels": "0", "flowlabel_state_ranges": "0"}, "net.ipv6.auto_flowlabels is 0"),
        ({"auto_flowlabels": "2", "flowlabel_state_ranges": "0"}, "net.ipv6.auto_flowlabels is 2"),
        ({"auto_flowlabels": "1", "flowlabel_state_ranges": "1"}, "net.ipv6.flowlabel_state_ranges is 1"),
        ({}, "auto_flowlabels cannot be read: is IPv6 on"),
    ],
)
def test_settings_that_keep_the_kernel_from_it_are_named(
    tmp_path: Path, files: dict[str, str], reason: str | None
) -> None:
    for name, value in files.items():
        (tmp_path / name).write_text(f"{value}\n")
    found = why_not_by_sysctl(tmp_path)
    assert (found is None) if reason is None else (found is not None and reason in found)


# --- the backend ---------------------------------------------------------------------------------


async def until_kernel_labels(marker: Marker, client: socket.socket, server: socket.socket) -> None:
    async with asyncio.timeout(10):
        while not marker.counters()["connections_by_kernel"]:
            deliver(client, server, b"x" * 1000)
            await asyncio.sleep(0.01)


def egress(host: Namespace) -> list[int]:
    with host.entered():
        return tcx_programs(socket.if_nametoindex("alice0"))[0]


def test_where_the_kernel_is_alone_an_open_connection_bears_it_once_the_report_is_dealt_with(
    hosts: Pair, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the answer sends then."""
    monkeypatch.setattr(socket_labels, "PATIENCE_SECONDS", 10.0)

    async def scenario() -> None:
        async with running(hosts.alice, label="kernel") as marker:
            for port in (40000, 40001):
                client, server = hosts.connect(port)
                deliver(client, server)
                seen.words()
                key = FlowKey.of(ALICE, port, BOB, 1094)
                await marker.handle([start(key)])
                deliver(client, server)
                [found] = seen.labels()[port, 1094]
                assert label.decode(found).tag == ATLAS
                client.close()
                server.close()

    run(scenario())


def test_no_program_is_there_where_the_kernel_is_alone(hosts: Pair, seen: Seen) -> None:
    async def scenario() -> None:
        async with running(hosts.alice, label="kernel") as marker:
            await marker.handle([start()])
            client, server = hosts.connect(40000)
            deliver(client, server)
            await until_kernel_labels(marker, client, server)
            deliver(client, server)
            [found] = seen.labels()[40000, 1094]  # the SYN's too
            assert label.decode(found).tag == ATLAS
            assert egress(hosts.alice) == []
            assert marker.counters()["interfaces"] == marker.counters()["packets_marked"] == 0
            await marker.handle([start(FlowKey.of(ALICE, 40001, BOB, 1094, "udp"))])
            assert marker.counters()["unmarked_not_tcp"] == 1
            client.close()
            server.close()

    run(scenario())


def test_the_program_first_and_then_the_kernel(hosts: Pair, seen: Seen) -> None:
    """One label all along: over the start, the change from the program to the kernel, and what follows."""

    async def scenario() -> None:
        async with running(hosts.alice, linger=0) as marker:
            client, server = hosts.connect(40000)
            seen.words()
            await marker.handle([start()])
            deliver(client, server)
            by_program = marker.counters()["packets_marked"]
            assert by_program > 0
            await until_kernel_labels(marker, client, server)
            settled = marker.counters()["packets_marked"]
            deliver(client, server)
            assert marker.counters()["packets_marked"] == settled
            [found] = seen.labels()[40000, 1094]
            assert label.decode(found).tag == ATLAS
            # Another tag for the same connection: at once, and by the kernel again before long.
            await marker.handle([end(), start(mark=CMS)])
            deliver(client, server)
            [other] = seen.labels()[40000, 1094]
            assert label.decode(other).tag == CMS
            await until_kernel_labels(marker, client, server)
            await marker.handle([end()])
            async with asyncio.timeout(10):
                while not client.getsockopt(socket.SOL_SOCKET, SO_TXREHASH):  # noqa: ASYNC110  # nobody would tell
                    await asyncio.sleep(0.01)
            deliver(client, server)
            seen.words()
            deliver(client, server)
            assert other not in seen.labels()[40000, 1094]
            client.close()
            server.close()

    run(scenario())


@pytest.mark.parametrize(
    ("chosen", "writer", "borne", "mark"),
    [
        (OWN, "auto", OWN, FlowMark("unmarked", "its application has chosen a flow label itself")),
        (OWN, "kernel", OWN, FlowMark("unmarked", "its application has chosen a flow label itself")),
        (0, "auto", None, FlowMark("label: tc", "its application wants no label of the kernel's (IPV6_AUTOFLOWLABEL)")),
        (0, "kernel", 0, FlowMark("unmarked", "its application wants no label of the kernel's (IPV6_AUTOFLOWLABEL)")),
    ],
)
def test_who_labels_what_the_kernel_does_not(
    hosts: Pair, seen: Seen, chosen: int, writer: str, borne: int | None, mark: FlowMark
) -> None:
    """The program at tc does where that is not the application; said and counted, whatever tag follows."""

    async def scenario() -> None:
        with unlabelled(hosts, chosen) as (client, listener):
            client.connect((BOB, 1094, chosen))
            server, _ = listener.accept()
            async with running(hosts.alice, label=writer) as marker:
                for tag in (ATLAS, CMS):
                    await marker.handle([start(mark=tag)])
                    async with asyncio.timeout(10):
                        while marker.mark_of(FLOW) != mark:  # noqa: ASYNC110  # nobody would tell
                            await asyncio.sleep(0.01)
                    seen.words()
                    deliver(client, server)
                    [found] = seen.labels()[40000, 1094]
                    assert found == borne if borne is not None else label.decode(found).tag == tag
                counters = marker.counters()
                assert counters["connections_by_kernel"] == 0
                reasons = {name: count for name, count in counters.items() if name.startswith("unmarked_") and count}
                assert sum(reasons.values()) == (mark.by == "unmarked")
            server.close()

    run(scenario())


@pytest.mark.parametrize(("stop", "stays"), [("remove", False), ("leave", True)])
def test_a_clean_stop_gives_labels_back_or_leaves_them(
    hosts: Pair, seen: Seen, tmp_path: Path, stop: str, stays: bool
) -> None:
    async def scenario() -> None:
        client, server = hosts.connect(40000)
        async with running(hosts.alice, directory=tmp_path, label="kernel", on_stop=stop) as marker:
            await marker.handle([start()])
            await until_kernel_labels(marker, client, server)
            seen.words()
            deliver(client, server)
            [found] = seen.labels()[40000, 1094]
            sender = asyncio.create_task(keep_sending(client, server))
        sender.cancel()
        seen.words()
        deliver(client, server)
        assert (found in seen.labels()[40000, 1094]) is stays
        client.close()
        server.close()

    run(scenario())


async def keep_sending(client: socket.socket, server: socket.socket) -> None:
    while True:
        deliver(client, server, b"x" * 1000)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"label": "tc"}, ""),
        ({"interfaces": ["alice0"]}, "the kernel would label on other interfaces too"),
        ({"static": [StaticMark(2, 15)]}, "there are static tags"),
    ],
)
def test_where_labels_are_written_at_tc_alone(
    hosts: Pair, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(hosts.alice, **settings) as marker:
            assert "connections_by_kernel" not in marker.counters()

    caplog.set_level("INFO")
    run(scenario())
    assert reason in caplog.text


def test_a_kernel_that_is_told_to_make_no_labels_is_named(hosts: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(hosts.alice) as marker:
            assert "connections_by_kernel" not in marker.counters()
        with pytest.raises(MarkerUnavailable, match=r"net\.ipv6\.auto_flowlabels is 0"):
            async with running(hosts.alice, label="kernel"):
                pass

    caplog.set_level("INFO")
    hosts.alice.set_sysctl("ipv6/auto_flowlabels", "0")
    run(scenario())
    assert "not by the kernel: net.ipv6.auto_flowlabels is 0" in caplog.text


def test_the_label_is_among_the_settings() -> None:
    assert MarkerSettings().label == "auto"


def test_a_program_of_another_version_is_not_taken(hosts: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into its maps would be something else."""
    monkeypatch.setattr(kernel_label, "MAX_EXPECTED", kernel_label.MAX_EXPECTED + 1)
    with hosts.alice.entered():
        assert kernel_label.probe() == "kernel_label.bpf.o is of another version than the agent: install again"
