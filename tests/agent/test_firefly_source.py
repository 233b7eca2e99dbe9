"""Fireflies over UDP into a source, as XRootD and dCache send them, and what is passed on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from scitags_agent import local_address
from scitags_agent.sources.firefly import FireflySource, FireflySourceSettings
from scitags_agent.stamps import SO_TIMESTAMPNS, STAMP_ROOM, sent_at
from scitags_core import firefly, firefly_schema
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import UNKNOWN, Tag
from tests.agent.conftest import Agent, Collector, firefly_backend, free_udp_port, wait_for
from tests.core.shared_spec import recordings
from tests.sink import Sink

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
HERE = FlowKey.of("::1", 1094, "2001:db8::9", 43720)
ELSEWHERE = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)


def datagram(event: FlowEvent, app: str = "xrootd") -> bytes:
    return firefly.encode(event, now=NOW, host="storage", app=app)


def event(key: FlowKey = HERE, state: FlowState = FlowState.START, usage: Usage | None = None) -> FlowEvent:
    end = NOW if state is FlowState.END else None
    return FlowEvent(state=state, key=key, tag=Tag(2, 15), start_time=NOW, end_time=end, usage=usage)


def heard(datagrams: Sequence[bytes], **settings: object) -> Sink:
    """What a source on loopback makes of datagrams."""
    port = free_udp_port()
    sink = Sink()

    async def scenario() -> None:
        source = FireflySource(msgspec.convert({"listen": [f"[::1]:{port}"], **settings}, FireflySourceSettings))
        task = asyncio.create_task(source.run(sink))
        for _ in range(500):
            if is_bound(port):
                break
            await asyncio.sleep(0.01)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            for one in datagrams:
                sender.sendto(one, ("::1", port))
        for _ in range(1000):
            if len(sink.events) + len(sink.refused) >= len(datagrams):
                break
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    return sink


def is_bound(port: int) -> bool:
    """Whether somebody listens at loopback."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        try:
            one.bind(("::1", port))
        except OSError:
            return True
    return False


@pytest.fixture(autouse=True)
def _addresses_of_now() -> None:
    """What other tests gave to this host and took away again may be remembered still."""
    local_address._remembered.cache_clear()


def test_a_flow_of_this_host_is_taken_as_it_stands() -> None:
    assert heard([datagram(event())]).events[0].key == HERE


def test_flows_of_others_rubbish_and_our_own_are_refused_each_by_its_reason() -> None:
    sink = heard([datagram(event(ELSEWHERE)), b"rubbish", datagram(event(), "scitags-agent"), datagram(event())])
    assert len(sink.events) == 1
    assert [reason.split(":")[0][:24] for reason in sink.refused] == [
        "neither end of the flow ",
        "no JSON object in b'rubb",
        "a firefly of this agent'",
    ]
    assert len(heard([datagram(event(ELSEWHERE))], only_local=False).events) == 1


def test_a_sender_that_is_not_allowed_is_named() -> None:
    assert heard([datagram(event())], allow=["192.0.2.0/24"]).refused == ["sender '::1' is not allowed"]
    assert len(heard([datagram(event())], allow=["::/0"]).events) == 1


def test_dcache_counts_as_its_pool_and_its_ends_lie_ahead() -> None:
    ahead = msgspec.structs.replace(
        event(state=FlowState.END, usage=Usage(received=0, sent=3000)),
        current_time=NOW,
        start_time=NOW,
        end_time=NOW + timedelta(seconds=20),
    )
    (found,) = heard([datagram(ahead, "dCache")]).events
    assert (found.usage, found.start_time, found.end_time) == (Usage(received=3000, sent=0), None, NOW)
    assert firefly.turned(found).key == HERE.reversed()
    assert found.is_reversed
    (plain,) = heard([datagram(ahead, "dCache")], dialect="plain").events
    assert plain.usage == Usage(received=0, sent=3000)


def test_dcache_s_copy_for_a_client_at_this_host_counts_once() -> None:
    """dCache sends to its peer's host and to the agent: for what comes by loopback both are the agent."""
    one, other = (datagram(event(key), "dCache") for key in (HERE, msgspec.structs.replace(HERE, dst_port=43721)))
    sink = heard([one, one, other, other])
    assert (len(sink.events), len(sink.refused)) == (2, 2)
    assert len(heard([datagram(event())] * 2).events) == 2  # XRootD's files of one connection


def test_dcache_takes_the_reserved_64_for_a_tag_and_we_do_not() -> None:
    reserved = firefly.encode(msgspec.structs.replace(event(), tag=Tag(1, 0)), now=NOW, host="storage", app="dCache")
    (found,) = heard([reserved]).events
    assert found.tag == UNKNOWN


def test_when_a_datagram_was_sent_is_known_to_the_kernel() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("::1", 0))
        receiver.settimeout(5)
        receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        before = time.monotonic()
        receiver.sendto(b"x", receiver.getsockname())
        after = time.monotonic()
        time.sleep(0.05)
        _, notes, _, _ = receiver.recvmsg(10, STAMP_ROOM)
    sent = sent_at(notes)
    assert sent is not None
    assert before - 0.001 <= sent <= after
    assert sent_at([]) is None


def test_every_recorded_firefly_of_dcache_is_understood() -> None:
    recorded = recordings()
    if not recorded:
        pytest.skip("../shared/spec/recordings/dcache.tsv is not beside this checkout")
    sink = heard(recorded, only_local=False)
    # Each went to the client's host as well, so that it was recorded twice.
    copies = len(recorded) - len(set(recorded))
    assert len(sink.refused) == copies > 0
    assert {reason.split(":")[0] for reason in sink.refused} == {"dCache's copy for a client that is at this host"}
    assert len(sink.events) == len(set(recorded))
    for found in sink.events:
        assert found.end_time is None or found.current_time is None or found.end_time <= found.current_time


@pytest.mark.parametrize("how", ["unchanged", "normalised"])
def test_what_is_heard_is_passed_on(how: str, collector: Collector) -> None:
    upload = event(ELSEWHERE, FlowState.END, Usage(received=3000, sent=10))
    sent = datagram(upload)
    heard([sent], relay=[f"[::1]:{collector.port}"], relay_as=how)
    (passed,) = collector.wait(1)
    assert firefly_schema.problems(passed) == []
    if how == "unchanged":
        assert passed == sent
    else:
        found = firefly.decode(passed).event
        assert (found.key, found.usage) == (ELSEWHERE.reversed(), Usage(received=10, sent=3000))


@pytest.mark.parametrize("how", ["unchanged", "normalised"])
def test_what_is_passed_on_in_a_circle_stops(make_agent: Callable[..., Agent], collector: Collector, how: str) -> None:
    port = free_udp_port()
    agent = make_agent(
        f'{firefly_backend(collector)}[[source]]\nkind = "firefly"\nlisten = ["[::1]:{port}"]\n'
        f'relay = ["[::1]:{port}"]\nrelay_as = "{how}"\n'
    )
    wait_for(lambda: is_bound(port), what="the source")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(datagram(event()), ("::1", port))
        wait_for(lambda: agent.status()["sources"]["firefly"].get("refused") == 1, what="its return")
        sender.sendto(datagram(event(state=FlowState.END)), ("::1", port))
        wait_for(lambda: agent.status()["sources"]["firefly"].get("refused") == 2, what="its return")
    assert agent.status()["sources"]["firefly"] == {"accepted": 2, "refused": 2, "relayed": 2}
    assert agent.status()["table"]["transfers"] == 0


@pytest.mark.parametrize("settings", [{"listen": []}, {"allow": ["10.0.0.1/8"]}, {"listen": ["[::1]:0"]}])
def test_bad_settings_are_named(settings: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError):
        FireflySource(msgspec.convert(settings, FireflySourceSettings))


def test_an_upload_is_announced_with_the_client_as_its_source(
    make_agent: Callable[..., Agent], collector: Collector
) -> None:
    port = free_udp_port()
    agent = make_agent(f'{firefly_backend(collector)}[[source]]\nkind = "firefly"\nlisten = ["[::1]:{port}"]\n')
    wait_for(lambda: "fireflies are heard" in agent.log.read_text(), what="an agent that listens")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as storage:
        for one in (event(), event(state=FlowState.END, usage=Usage(received=7000, sent=0))):
            storage.sendto(datagram(one), ("::1", port))
        wait_for(lambda: agent.accepted("firefly") == 2, what="two fireflies")
    started, ended = collector.events(2)
    assert (started.key, ended.key) == (HERE, HERE.reversed())
    assert ended.usage == Usage(received=0, sent=7000)
    assert agent.status()["table"]["flows"] == 0
