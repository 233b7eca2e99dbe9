"""The marker backend on a real link: real TCP, captured at the other end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from scitags_core import label
from scitags_core.flow import FlowChange, FlowKey
from scitags_core.tag import UNKNOWN, Tag
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import delete_link, link
from tests.netns.watching import ATLAS, CMS, FLOW, Seen, deliver, end, run, running, start, transfer


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
def test_a_marker_without_interface_says_so_and_waits(
    pair: Pair, bpf: None, interfaces: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(pair.alice, interfaces=list(interfaces)) as marker:
            assert marker.counters()["interfaces"] == 0

    run(scenario())
    assert f"(interfaces: {', '.join(interfaces)})" in caplog.text


def test_loopback_is_taken_when_it_is_named(pair: Pair, bpf: None) -> None:
    async def scenario() -> None:
        async with running(pair.alice, interfaces=["lo"]) as marker:
            assert marker.counters()["interfaces"] == 1

    run(scenario())
