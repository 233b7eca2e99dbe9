"""The marker beside other users of tc, and what it leaves behind: a real agent process in a namespace."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyroute2 import IPRoute, NetlinkError

from scitags_agent.bpf import attach, clsact
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.loader import MarkerProgram
from scitags_agent.client import AgentClient, AgentUnavailable
from tests.netns.conftest import Pair
from tests.netns.namespaces import Namespace

START_SECONDS = 20.0


class HostedAgent:
    """An agent in a namespace, with a marker and a Unix socket."""

    def __init__(self, host: Namespace, directory: Path, way: str) -> None:
        self.socket = directory / "agent.sock"
        self.log = directory / "log"
        self._host = host
        config = directory / "agent.toml"
        config.write_text(
            f'[[source]]\nkind = "unix"\npath = "{self.socket}"\n'
            f'[[backend]]\nkind = "marker"\nattach = "{way}"\nrequired = true\nrescan = 0.1\n'
        )
        self._command = [sys.executable, "-m", "scitags_agent", "--config", str(config)]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process: subprocess.Popen[bytes] = self._host.popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with AgentClient(self.socket) as client:
                    client.status()
                return process
            except AgentUnavailable:
                time.sleep(0.05)
        process.kill()
        process.wait()
        pytest.fail(f"the agent did not start: {self.log.read_text()}")

    def restart(self) -> None:
        self.process = self._start()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def hosted(pair: Pair, stack: ExitStack, directory: Path, way: str) -> HostedAgent:
    agent = HostedAgent(pair.alice, directory, way)
    stack.callback(lambda: agent.process.poll() is None and agent.end(signal.SIGKILL))
    return agent


def filters(host: Namespace) -> list[str]:
    """The names of the filters on the way out of alice0."""
    with host.entered(), IPRoute() as netlink:
        return [one.name for one in clsact.list_filters(netlink, index_of(host), clsact.EGRESS)]


def qdiscs(host: Namespace) -> list[str]:
    with host.entered(), IPRoute() as netlink:
        found = netlink.get_qdiscs(index=index_of(host))
        return sorted(one.get_attr("TCA_KIND") for one in found)


def index_of(host: Namespace) -> int:
    with host.entered():
        return matching(["alice0"])[0].index


def add_foreign(host: Namespace, program: MarkerProgram, priority: int, *, qdisc: bool) -> None:
    with host.entered(), IPRoute() as netlink:
        if qdisc:
            netlink.tc("add", "clsact", index_of(host), clsact.CLSACT_HANDLE)
        descriptor = program.program_fd(ethernet=True)
        netlink.tc(
            "add-filter", "bpf", index_of(host), 1, fd=descriptor, name=f"foreign{priority}",
            parent=clsact.EGRESS, prio=priority, protocol=clsact.ETH_P_ALL, direct_action=True,
        )  # fmt: skip


def names_in(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir()) if directory.is_dir() else []


def ours(names: list[str]) -> list[str]:
    return [name for name in names if name.split("/")[0] in clsact.FILTER_NAMES]


@pytest.mark.parametrize("way", ["tcx", "clsact"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_agent_leaves_nothing(
    pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path, way: str, number: signal.Signals
) -> None:
    before = qdiscs(pair.alice)
    agent = hosted(pair, stack, tmp_path, way)
    assert ("clsact" in qdiscs(pair.alice)) is (way == "clsact")
    assert agent.end(number) == 0
    assert qdiscs(pair.alice) == before
    assert not agent.socket.exists()


def test_foreign_filters_before_and_after_stay_and_so_does_the_qdisc(
    pair: Pair, program: MarkerProgram, stack: ExitStack, tmp_path: Path
) -> None:
    add_foreign(pair.alice, program, clsact.FIRST_PRIORITY, qdisc=True)
    agent = hosted(pair, stack, tmp_path, "clsact")
    add_foreign(pair.alice, program, 20, qdisc=False)
    names = filters(pair.alice)
    assert len(ours(names)) == 1
    assert set(names) - set(ours(names)) == {f"foreign{clsact.FIRST_PRIORITY}", "foreign20"}
    assert agent.end(signal.SIGTERM) == 0
    assert filters(pair.alice) == [f"foreign{clsact.FIRST_PRIORITY}", "foreign20"]
    assert "clsact" in qdiscs(pair.alice)


def test_a_qdisc_of_ours_that_others_have_come_to_use_stays(
    pair: Pair, program: MarkerProgram, stack: ExitStack, tmp_path: Path
) -> None:
    agent = hosted(pair, stack, tmp_path, "clsact")
    add_foreign(pair.alice, program, 20, qdisc=False)
    assert agent.end(signal.SIGTERM) == 0
    assert filters(pair.alice) == ["foreign20"]


def test_an_empty_foreign_qdisc_stays(pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path) -> None:
    with pair.alice.entered(), IPRoute() as netlink:
        netlink.tc("add", "clsact", index_of(pair.alice), clsact.CLSACT_HANDLE)
    agent = hosted(pair, stack, tmp_path, "clsact")
    assert agent.end(signal.SIGTERM) == 0
    assert "clsact" in qdiscs(pair.alice)


def test_after_kill_9_nothing_stays_with_tcx(pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path) -> None:
    before = qdiscs(pair.alice)
    agent = hosted(pair, stack, tmp_path, "tcx")
    agent.end(signal.SIGKILL)
    assert qdiscs(pair.alice) == before
    agent.restart()
    assert agent.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("next_way", ["clsact", "tcx"])
def test_after_kill_9_the_next_agent_clears_up_with_clsact(
    pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path, next_way: str
) -> None:
    before = qdiscs(pair.alice)
    agent = hosted(pair, stack, tmp_path, "clsact")
    agent.end(signal.SIGKILL)
    [stale] = ours(filters(pair.alice))
    agent = hosted(pair, stack, tmp_path, next_way)
    if next_way == "clsact":
        [fresh] = ours(filters(pair.alice))
        assert fresh != stale
    else:
        # Under TCX it would go on marking what the killed agent knew.
        assert qdiscs(pair.alice) == before
    assert agent.end(signal.SIGTERM) == 0
    # The qdisc was the killed agent's: it is taken away with the filter.
    assert qdiscs(pair.alice) == before


def test_after_kill_9_a_foreign_qdisc_and_filter_stay(
    pair: Pair, program: MarkerProgram, stack: ExitStack, tmp_path: Path
) -> None:
    add_foreign(pair.alice, program, 3, qdisc=True)
    agent = hosted(pair, stack, tmp_path, "clsact")
    agent.end(signal.SIGKILL)
    assert len(ours(filters(pair.alice))) == 1
    agent.restart()
    assert agent.end(signal.SIGTERM) == 0
    assert filters(pair.alice) == ["foreign3"]


def test_the_filter_of_an_agent_that_lives_is_let_alone(
    pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    agents = [hosted(pair, stack, directory, "clsact") for directory in (tmp_path, tmp_path / "second")]
    assert len(ours(filters(pair.alice))) == 2
    for left, agent in ((1, agents[0]), (0, agents[1])):
        assert agent.end(signal.SIGTERM) == 0
        assert len(ours(filters(pair.alice))) == left
        assert "our program was taken away" not in agent.log.read_text()


def test_where_only_the_ingress_qdisc_is_nothing_is_put_on_the_way_in(pair: Pair, program: MarkerProgram) -> None:
    """It stands where clsact would, and the kernel would take a filter for the way out and run it on the way in."""
    with pair.alice.entered(), IPRoute() as netlink:
        index = index_of(pair.alice)
        netlink.tc("add", "ingress", index, clsact.CLSACT_HANDLE)
        with pytest.raises(OSError, match="clsact: its place is taken by the qdisc ingress"):
            attach.attach(program, index, ethernet=True, way="clsact")
        assert clsact.list_filters(netlink, index, clsact.EGRESS) == []
        assert "ingress" in qdiscs(pair.alice)
        attach.attach(program, index, ethernet=True, way="auto").detach()
        assert "ingress" in qdiscs(pair.alice)


def test_a_program_that_someone_took_away_is_put_back(pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path) -> None:
    agent = hosted(pair, stack, tmp_path, "clsact")
    with pair.alice.entered(), IPRoute() as netlink:
        netlink.tc("del", "clsact", index_of(pair.alice), clsact.CLSACT_HANDLE)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(NetlinkError):  # no qdisc at this moment
            if ours(filters(pair.alice)):
                break
        time.sleep(0.05)
    assert len(ours(filters(pair.alice))) == 1
    assert "our program was taken away" in agent.log.read_text()
    assert agent.end(signal.SIGTERM) == 0


def test_two_ways_side_by_side_do_not_disturb_each_other(pair: Pair, program: MarkerProgram) -> None:
    with pair.alice.entered():
        index = index_of(pair.alice)
        tcx = attach.attach(program, index, ethernet=True, way="tcx")
        filtered = attach.attach(program, index, ethernet=True, way="clsact")
        assert tcx.is_alive()
        assert filtered.is_alive()
        tcx.detach()
        assert not tcx.is_alive()
        assert filtered.is_alive()
        filtered.detach()
        assert not filtered.is_alive()
        filtered.detach()


def test_an_interface_that_went_away_is_no_error(pair: Pair, program: MarkerProgram) -> None:
    with pair.alice.entered(), IPRoute() as netlink:
        index = index_of(pair.alice)
        attached = [attach.attach(program, index, ethernet=True, way=way) for way in ("tcx", "clsact")]
        netlink.link("del", index=index)
        assert [one.is_alive() for one in attached] == [False, False]
        for one in attached:
            one.detach()


def test_nothing_is_pinned(pair: Pair, bpf: None, stack: ExitStack, tmp_path: Path) -> None:
    pinned = Path("/sys/fs/bpf")
    before = names_in(pinned)
    agent = hosted(pair, stack, tmp_path, "auto")
    assert names_in(pinned) == before
    assert agent.end(signal.SIGTERM) == 0
