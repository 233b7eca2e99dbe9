"""Programs for other network namespaces, loaded as these come, each with a place of its own in the keys of flows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from scitags_agent.bpf.layout import MAX_PLACE
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.placement import Program
from scitags_agent.namespaces import Found


class Closable(Program, Protocol):
    """A loaded program."""

    def close(self) -> None:
        """Give it back to the kernel."""


class ProgramsElsewhere:
    """As Placement wants them (Elsewhere). Made in the event loop; come() and gone() are called in a thread.

    load(place)            loads the program for a namespace: it shares the flows of the agent's own, and finds those
                           whose keys have the place. May raise MarkerUnavailable, OSError
    came(namespace, place) is called in the event loop before it is attached, gone(number) after it is not any more
    """

    def __init__(
        self,
        load: Callable[[int], Closable],
        came: Callable[[Found, int], Awaitable[None]],
        gone: Callable[[int], Awaitable[None]],
    ) -> None:
        self._load, self._came, self._gone = load, came, gone
        self._loop = asyncio.get_running_loop()
        self._loaded: dict[int, Closable] = {}
        self._places: dict[int, int] = {}  # by the numbers of the namespaces
        # What has stood for another is used again as late as may be: flows that were there are forgotten by then.
        self._free = deque(range(1, MAX_PLACE + 1))

    def take_place(self, number: int) -> int:
        """One that stands for this namespace from now on. MarkerUnavailable when there are too many."""
        if not self._free:
            raise MarkerUnavailable(f"no more than {MAX_PLACE} network namespaces can be told apart")
        place = self._places[number] = self._free.popleft()
        return place

    def give_back(self, number: int) -> None:
        """The place of a namespace that has gone."""
        self._free.append(self._places.pop(number))

    def come(self, namespace: Found) -> Program:
        """The program of a namespace, with the flows that are there. Raises MarkerUnavailable, OSError."""
        place = self.take_place(namespace.number)
        try:
            loaded = self._load(place)
        except BaseException:
            self.give_back(namespace.number)
            raise
        try:
            asyncio.run_coroutine_threadsafe(_awaited(self._came(namespace, place)), self._loop).result()
        except BaseException:
            loaded.close()
            self.give_back(namespace.number)
            raise
        self._loaded[namespace.number] = loaded
        return loaded

    def gone(self, number: int) -> None:
        """A namespace has gone."""
        asyncio.run_coroutine_threadsafe(_awaited(self._gone(number)), self._loop).result()
        self._loaded.pop(number).close()
        self.give_back(number)

    def close(self) -> None:
        """Give all programs back to the kernel."""
        while self._loaded:
            self._loaded.popitem()[1].close()


async def _awaited(one: Awaitable[None]) -> None:
    await one
