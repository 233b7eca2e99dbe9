"""Lanes: a slow or failing backend harms no other, and drops are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from scitags_agent.fanout import Fanout, Lane
from scitags_core.flow import FlowChange, FlowKey, FlowState
from scitags_core.roles import FlowMark, Inheritance
from tests.agent.events import PRODUCTION, end, start

START = FlowChange(start(), 1, PRODUCTION)
END = FlowChange(end(), 0, None)


INHERITANCE = Inheritance()


class Recorder:
    """A backend that keeps what it is handed; it waits at the gate first, and fails when told to."""

    def __init__(self) -> None:
        self.handled: list[FlowChange] = []
        self.gate = asyncio.Event()
        self.failing = False
        self.closed = 0

    async def start(self, inheritance: Inheritance = INHERITANCE) -> None:
        self.gate.set()

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        await self.gate.wait()
        if self.failing:
            raise RuntimeError("broken")
        self.handled += changes

    async def close(self) -> None:
        self.closed += 1
        if self.failing:
            raise RuntimeError("broken at closing too")

    def counters(self) -> Mapping[str, int]:
        return {"handled": len(self.handled)}


async def two_lanes(limit: int) -> tuple[Fanout, Recorder, Recorder]:
    fanout, slow, quick = Fanout(), Recorder(), Recorder()
    await quick.start()
    fanout.add(Lane("slow", slow, limit))
    fanout.add(Lane("quick", quick, limit))
    return fanout, slow, quick


def test_a_slow_backend_keeps_no_other_waiting_and_loses_nothing_within_its_bound() -> None:
    async def scenario() -> None:
        fanout, slow, quick = await two_lanes(limit=1000)
        for _ in range(900):
            fanout.put([START])
        assert not await fanout.drained(0.05)
        assert (len(quick.handled), len(slow.handled)) == (900, 0)
        slow.gate.set()
        assert await fanout.drained(1)
        assert slow.handled == quick.handled
        await fanout.close()

    asyncio.run(scenario())


def test_beyond_the_bound_starts_are_dropped_and_ends_still_come_through() -> None:
    async def scenario() -> None:
        fanout, slow, _ = await two_lanes(limit=10)
        await asyncio.sleep(0)
        for _ in range(25):
            fanout.put([START])
        for _ in range(25):
            fanout.put([END])
        assert fanout.lanes[0].status()["dropped"] == 15 + 15
        slow.gate.set()
        assert await fanout.drained(1)
        assert [change.event.state for change in slow.handled] == [START.event.state] * 10 + [END.event.state] * 10
        await fanout.close()

    asyncio.run(scenario())


def test_an_end_of_what_was_handed_over_is_never_dropped() -> None:
    async def scenario() -> None:
        fanout, slow, _ = await two_lanes(limit=3)
        keys = [FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094) for port in range(1, 11)]
        for key in keys:
            fanout.put([FlowChange(start(key=key), 1, PRODUCTION)])
        for _ in range(2):
            for key in keys:
                fanout.put([FlowChange(end(key=key), 0, None)])
        fanout.put([FlowChange(start(key=keys[-1]), 1, PRODUCTION)])
        slow.gate.set()
        assert await fanout.drained(1)
        ended = [change.event.key for change in slow.handled if change.event.state is FlowState.END]
        # The second round has ends of nothing, which no backend minds.
        assert ended[:3] == keys[:3]
        assert set(keys[:3]) <= set(ended)
        assert [change.event.key for change in slow.handled[:3]] == keys[:3]
        assert fanout.lanes[0].status()["dropped"] == 7 + 7 + 1
        await fanout.close()

    asyncio.run(scenario())


def test_a_failing_backend_is_counted_and_goes_on_when_it_recovers() -> None:
    async def scenario() -> None:
        fanout, broken, quick = await two_lanes(limit=10)
        broken.gate.set()
        broken.failing = True
        fanout.put([START])
        assert await fanout.drained(1)
        broken.failing = False
        fanout.put([END])
        assert await fanout.drained(1)
        assert (broken.handled, quick.handled) == ([END], [START, END])
        assert fanout.lanes[0].status() == {"queued": 0, "dropped": 0, "failed": 1, "handled": 1}
        broken.failing = True
        await fanout.close()
        assert (broken.closed, quick.closed) == (1, 1)

    asyncio.run(scenario())


class MarkingRecorder(Recorder):
    """One that marks packets."""

    def mark_of(self, key: FlowKey) -> FlowMark | None:
        return None


def test_packets_come_before_what_is_told_of_them() -> None:
    async def scenario() -> None:
        order: list[str] = []
        fanout = Fanout()
        for name, backend in (("fireflies", Recorder()), ("marks", MarkingRecorder())):
            await backend.start()
            fanout.add(Lane(name, backend, 100))

            async def handle(changes: Sequence[FlowChange], name: str = name) -> None:
                order.append(name)

            backend.handle = handle  # type: ignore[method-assign]
        await asyncio.sleep(0)  # both wait for something to do
        fanout.put([START])
        assert await fanout.drained(5)
        await fanout.close()
        assert order == ["marks", "fireflies"]

    asyncio.run(scenario())
