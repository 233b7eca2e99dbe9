"""Programs on interfaces in other network namespaces, as what holds those comes and goes."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from scitags_agent import cleaning, namespaces
from scitags_agent.bpf.attach import tcx_programs
from scitags_agent.bpf.loader import MarkerProgram
from scitags_agent.bpf.namespaces import enter, in_passing_thread
from scitags_agent.bpf.placement import Placement
from scitags_agent.namespaces import Finder, Found
from scitags_agent.reserved_routes import PROTOCOL, ReservedRoutes, Room
from scitags_agent.rtnetlink import RouteSocket
from tests.netns.conftest import ALICE, Pair
from tests.netns.containers import until
from tests.netns.namespaces import Namespace

FAR = "2001:db8::7"


@pytest.fixture
def agents(root: None) -> Iterator[Namespace]:
    """The agent's own network namespace."""
    with Namespace("agents") as one, one.entered():
        yield one


@pytest.fixture
def second(pair: Pair) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in alice's network namespace, which lives on."""
    with pair.alice.popen(["sleep", "600"]) as process:
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the other process")
        yield process
        process.kill()


def programs(process: subprocess.Popen[bytes]) -> list[int]:
    """Those on alice0, seen by way of that process."""

    def inside() -> list[int]:
        enter(f"/proc/{process.pid}/ns/net")
        return tcx_programs(socket.if_nametoindex("alice0"))[0]

    return in_passing_thread(inside).result()


def patterns(pair: Pair, process: subprocess.Popen[bytes]) -> list[str]:
    """By the namespace's first process, and when that has ended by the second."""
    return [f"pid:{pair.alice.pid}", f"pid:{process.pid}"]


@pytest.mark.parametrize("is_kept", [True, False], ids=["what a killed agent leaves", "what goes with it"])
def test_it_stays_where_it_is_when_the_first_process_of_a_namespace_ends(
    pair: Pair, bpf: None, agents: Namespace, second: subprocess.Popen[bytes], tmp_path: Path, is_kept: bool
) -> None:
    async def scenario(program: MarkerProgram) -> None:
        placement = Placement(
            program, ["alice*"], name="x", namespaces=patterns(pair, second), home=tmp_path if is_kept else None
        )
        await placement.start()
        [number] = Finder(patterns(pair, second)).find()
        before = programs(second)
        assert len(before) == 1
        pair.alice.close()
        await placement.look()
        assert len(placement) == 1
        assert placement.covers(number, 2)
        assert programs(second) == before
        await placement.close(keep=False)
        assert programs(second) == []

    with closing(MarkerProgram(max_flows=2)) as program:
        asyncio.run(scenario(program))


def test_nothing_is_held_of_a_namespace_that_has_gone(pair: Pair, bpf: None, agents: Namespace) -> None:
    """A link that goes with the agent outlives its interface."""

    async def scenario(program: MarkerProgram) -> None:
        placement = Placement(program, ["alice*"], name="x", namespaces=[f"pid:{pair.alice.pid}"])
        before = open_links()
        await placement.start()
        assert open_links() == before + 1
        pair.alice.close()
        await placement.look()
        assert len(placement) == 0
        assert open_links() == before
        await placement.close(keep=False)

    with closing(MarkerProgram(max_flows=2)) as program:
        asyncio.run(scenario(program))


def open_links() -> int:
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of this very look
            found += "bpf_link" in str(one.readlink())
    return found


def test_a_program_that_is_there_already_is_no_trouble(
    pair: Pair, bpf: None, agents: Namespace, tmp_path: Path
) -> None:
    """As where its interface could not be looked at for a moment."""

    async def scenario(program: MarkerProgram) -> None:
        first, again = (
            Placement(program, ["alice*"], name="x", namespaces=[pair.alice.path], home=tmp_path) for _ in range(2)
        )
        await first.start()
        await again.start()
        assert len(again) == 1
        await first.close(keep=True)
        await again.close(keep=False)

    with closing(MarkerProgram(max_flows=2)) as program:
        asyncio.run(scenario(program))


def test_routes_stay_when_the_first_process_of_a_namespace_ends(
    pair: Pair, agents: Namespace, second: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "RECENT_SECONDS", 0.0)
    [number] = Finder(patterns(pair, second)).find()
    place = number, FAR
    routes = ReservedRoutes(8, patterns(pair, second))
    assert routes.place_of(ALICE, FAR, number) == place
    assert routes.reserve(place, ALICE, 0.0) == Room(1500, 1492)
    pair.alice.close()
    routes.follow_namespaces()
    assert routes.look(1.0) == {}
    assert our_routes(second) == {FAR: 1492}
    routes.close(keep=False)
    assert our_routes(second) == {}


def our_routes(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Destinations and MTUs, seen by way of that process."""

    def inside() -> dict[str, int]:
        enter(f"/proc/{process.pid}/ns/net")
        with RouteSocket() as asked:
            return {route.destination: route.mtu for route in asked.routes_of(PROTOCOL)}

    return in_passing_thread(inside).result()


def test_routes_in_a_namespace_that_is_not_meant_any_more_are_taken_away(
    pair: Pair, agents: Namespace, second: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "RECENT_SECONDS", 0.0)
    [number] = Finder([pair.alice.path]).find()
    routes = ReservedRoutes(8, [f"pid:{pair.alice.pid}"])
    assert routes.reserve((number, FAR), ALICE, 0.0) == Room(1500, 1492)
    pair.alice.close()
    routes.follow_namespaces()
    assert our_routes(second) == {}
    routes.close(keep=False)


def test_a_namespace_that_goes_meanwhile_does_not_keep_the_rest_from_being_cleaned(
    pair: Pair, agents: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Finder.find

    def found(finder: Finder) -> dict[int, Found]:
        there = whole(finder)
        pair.bob.close()
        return there

    monkeypatch.setattr(Finder, "find", found)
    directory = tmp_path / "state"
    directory.mkdir()
    assert cleaning.clean(directory, [pair.bob.path]) == [f"{directory} removed"]
