"""Programs for other network namespaces, loaded as these come, each with a place of its own in the keys of flows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Protocol

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
        self._places = itertools.count(1)

    def next_place(self) -> int:
        """One that stands for no other namespace."""
        return next(self._places)

    def come(self, namespace: Found) -> Program:
        """The program of a namespace, with the flows that are there. Raises MarkerUnavailable, OSError."""
        place = self.next_place()
        loaded = self._load(place)
        try:
            asyncio.run_coroutine_threadsafe(_awaited(self._came(namespace, place)), self._loop).result()
        except BaseException:
            loaded.close()
            raise
        self._loaded[namespace.number] = loaded
        return loaded

    def gone(self, number: int) -> None:
        """A namespace has gone."""
        asyncio.run_coroutine_threadsafe(_awaited(self._gone(number)), self._loop).result()
        self._loaded.pop(number).close()

    def close(self) -> None:
        """Give all programs back to the kernel."""
        while self._loaded:
            self._loaded.popitem()[1].close()


async def _awaited(one: Awaitable[None]) -> None:
    await one
