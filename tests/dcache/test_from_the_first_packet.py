"""Where the kernel labels by itself, data connections are marked from their first packet of data on, and no others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from scitags_agent.client import AgentClient
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from tests.agent.conftest import STOP_SECONDS, wait_for
from tests.dcache.conftest import ANALYSIS, CAROL, PRODUCTION, STATUS_SECONDS, Site
from tests.dcache.pool import POOL, Download
from tests.netns.conftest import ALICE, BOB

OCTETS = 100_000
MANY_OCTETS = 1_000_000
REPEATED = 20
REDIRECT_SECONDS = 0.002


@pytest.mark.parametrize("labelling_site", ["auto", "kernel"], indirect=True)
def test_every_packet_of_data_that_comes_at_once_and_none_of_its_neighbours(labelling_site: Site) -> None:
    """20 downloads, beside a connection of the same client that is there before, and another client's that comes with
    it. The client is sent to the pool when the agent has heard of the start; nothing waits from then on."""
    site = labelling_site
    busy = site.download(None)
    busy.connect()
    tagged, others = [], [busy.ports]
    for number in range(1, REPEATED + 1):
        one, neighbour = site.download(PRODUCTION), site.download(None, client=CAROL)
        one.tell()
        site.expects(number)
        neighbour.connect()
        one.connect()
        one.send(MANY_OCTETS)
        for download in (busy, neighbour):
            download.send(OCTETS)
        tagged.append(one.ports)
        others.append(neighbour.ports)
        one.end()
        neighbour.close()
    seen = site.tags()
    marked, beside = (Counter(tag for ports in these for tag in seen[ports]) for these in (tagged, others))
    counted = site.marker()
    expected = {name: total for name, total in counted.items() if name.startswith("expected")}
    print(
        f"{marked[PRODUCTION]} of {marked.total()} packets with data, "
        f"{beside.total() - beside[None]} of {beside.total()} of neighbours; {expected}"
    )
    assert set(marked) == {PRODUCTION}
    assert set(beside) == {None}
    assert (counted["expected"], counted["expected_met"]) == (REPEATED, REPEATED)
    assert site.matching()["matched"] == REPEATED


def test_two_milliseconds_after_the_start(labelling_site: Site) -> None:
    """What the agent has heard of in that time is marked from the first packet on; else from the match on."""
    site = labelling_site
    lost = whole = late = 0
    downloads = []
    for _ in range(REPEATED):
        met = site.marker()["expected_met"]
        one = site.download(PRODUCTION)
        one.tell()
        time.sleep(REDIRECT_SECONDS)
        one.connect()
        one.send(OCTETS)
        site.agent.wait_for(lambda records: any(record.state == "start" for record in records), "the start")
        one.send(OCTETS)
        downloads.append((one.ports, site.marker()["expected_met"] > met))
        one.end()
    seen = site.tags()
    for ports, is_met in downloads:
        first = seen[ports].index(PRODUCTION)
        assert set(seen[ports][first:]) == {PRODUCTION}
        if is_met:
            assert first == 0
        late += first > 0
        lost += first
        whole += len(seen[ports])
    print(f"not marked: {lost} of {whole} packets with data, of {late} of {REPEATED} downloads")


def test_none_of_a_packet_where_two_starts_could_be_meant(labelling_site: Site) -> None:
    site = labelling_site
    downloads = [site.download(tag) for tag in (PRODUCTION, ANALYSIS)]
    for download in downloads:
        download.tell()
    site.expects(2)
    for download in downloads:
        download.connect()
        download.send(OCTETS)
    wait_for(lambda: site.matching()["ambiguous"] == 2, what="the doubt")
    for download in downloads:
        download.send(OCTETS)
    tags = site.tags()
    assert set(tags[downloads[0].ports]) | set(tags[downloads[1].ports]) == {None}
    assert site.marker()["expected_met"] == 0
    for download in downloads:
        download.end()


def by_the_pipe(site: Site, state: FlowState) -> None:
    wait_for(site.pipe.exists, what="the pipe")
    site.pipe.write_text(f"{state} tcp {ALICE} {POOL} {BOB} 0 {PRODUCTION.experiment} {PRODUCTION.activity}\n")


def by_the_socket(site: Site, state: FlowState) -> None:
    with AgentClient(str(site.agent.socket)) as client:
        assert client.send([FlowEvent(state=state, key=FlowKey.of(ALICE, POOL, BOB, 0), tag=PRODUCTION)])


@pytest.mark.parametrize("tell", [by_the_pipe, by_the_socket])
def test_of_any_source_that_does_not_know_the_far_port(
    labelling_site: Site, tell: Callable[[Site, FlowState], None]
) -> None:
    site = labelling_site
    for number in (1, 2):
        one = site.download(None)
        tell(site, FlowState.START)
        site.expects(number)
        one.connect()
        one.send(OCTETS)
        tell(site, FlowState.END)
        (start, end) = site.agent.wait_for(lambda records: len(records) >= 2, "start and end")
        assert start.ends == end.ends == (ALICE, POOL, BOB, one.ports[1])
        assert set(site.tags()[one.ports]) == {PRODUCTION}
        one.close()
    assert site.marker()["expected_met"] == 2


@pytest.mark.parametrize("labelling_site", ["kernel"], indirect=True)
def test_one_that_is_announced_by_its_own_5_tuple_is_not_what_was_expected(labelling_site: Site) -> None:
    """Of the same client to the same port, as a start waits: it bears its own tag, and the next that of the start."""
    site = labelling_site
    waiting, announced = site.download(PRODUCTION), site.download(None)
    own = FlowEvent(state=FlowState.START, key=FlowKey.of(ALICE, POOL, BOB, announced.next_port), tag=ANALYSIS)
    with AgentClient(str(site.agent.socket)) as client:
        assert client.announce([own], timeout=STATUS_SECONDS) == []
    waiting.tell()
    site.expects(1)
    announced.connect()
    announced.send(OCTETS)
    waiting.connect()
    waiting.send(OCTETS)
    tags = site.tags()
    assert set(tags[announced.ports]) == {ANALYSIS}
    assert set(tags[waiting.ports]) == {PRODUCTION}
    wait_for(lambda: site.matching()["matched"] == 1, what="the match")
    for download in (announced, waiting):
        download.end()


def expires(site: Site, one: Download) -> None:
    wait_for(lambda: site.matching()["unmatched"] == 1, what="the end of patience")


def ends(site: Site, one: Download) -> None:
    assert one.tag is not None
    site.pool.tell("end", one.ends, one.tag)
    wait_for(lambda: site.matching()["waiting"] == 0, what="the end")


def is_reconfigured(site: Site, one: Download) -> None:
    """The marker is another one from now on."""
    site.agent.config.write_text(site.agent.config.read_text().replace("required = true", "linger = 1.0"))
    site.reload()
    wait_for(lambda: site.matching()["unmatched"] == 1, what="the end of patience")


@pytest.mark.parametrize("what", [expires, ends, is_reconfigured])
def test_an_expectation_goes_and_what_comes_later_is_not_marked(
    labelling_site: Site, what: Callable[[Site, Download], None]
) -> None:
    site = labelling_site
    one = site.download(PRODUCTION)
    one.tell()
    site.expects(1)
    what(site, one)
    one.connect()
    one.send(OCTETS)
    assert set(site.tags()[one.ports]) == {None}
    if what is not is_reconfigured:
        assert site.marker()["expected_unmet"] == 1
    one.close()


def test_killed_between_expectation_and_connection(labelling_site: Site) -> None:
    """What was expected goes with the agent; the next one begins with nothing, and marks what it hears of."""
    site = labelling_site
    one = site.download(PRODUCTION)
    one.tell()
    site.expects(1)
    process = site.agent.process
    assert process is not None
    process.kill()
    process.wait(STOP_SECONDS)
    one.connect()
    one.send(OCTETS)
    site.agent.socket.unlink()
    site.start()
    one.send(OCTETS)
    assert set(site.tags()[one.ports]) == {None}
    next_one = site.download(PRODUCTION, client=BOB)
    next_one.tell()
    site.expects(1)
    next_one.connect()
    next_one.send(OCTETS)
    tags = site.tags()
    assert set(tags[next_one.ports]) == {PRODUCTION}
    assert site.marker()["expected_met"] == 1
    for download in (one, next_one):
        download.end()


def test_a_label_goes_with_the_flow_while_its_connection_stays(labelling_site: Site) -> None:
    site = labelling_site
    one = site.download(PRODUCTION)
    one.tell()
    site.expects(1)
    one.connect()
    one.send(OCTETS)
    site.pool.tell("end", one.ends, PRODUCTION)
    wait_for(lambda: site.marker()["connections"] == 0, what="the end of the flow")

    def is_bare() -> bool:
        one.send(1000)
        return PRODUCTION not in site.tags()[one.ports]

    assert site.tags()[one.ports][0] == PRODUCTION
    wait_for(is_bare, what="a packet without the label")
    one.close()
