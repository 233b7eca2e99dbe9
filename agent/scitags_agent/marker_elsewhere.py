"""The marker's programs for other network namespaces, each with a place of its own in the keys of flows."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from scitags_agent.bpf.connections import own_namespace
from scitags_agent.bpf.kernel_label import why_not_by_sysctl
from scitags_agent.bpf.loader import ElsewhereProgram, MarkerProgram
from scitags_agent.bpf.namespaces import entered, in_passing_thread
from scitags_agent.marker_places import Places
from scitags_agent.namespaces import Finder, Found
from scitags_agent.socket_labels import SocketLabels
from scitags_core.flow import FlowChange

log = logging.getLogger(__name__)


class _Label(msgspec.Struct, frozen=True):
    """Of a namespace: what the kernel calls it, and why it cannot write labels there itself."""

    cookie: int
    why_not: str


class ProgramsElsewhere:
    """As Placement wants them (Elsewhere). Made in the event loop; come() and gone() are called in a thread."""

    def __init__(
        self,
        program: MarkerProgram,
        places: Places,
        labels: SocketLabels | None,
        carry_out: Callable[[Sequence[FlowChange]], Awaitable[None]],
    ) -> None:
        """carry_out is called in the event loop, with changes that are spread already."""
        self._program, self._places, self._labels, self._carry_out = program, places, labels, carry_out
        self._loop = asyncio.get_running_loop()
        self._loaded: dict[int, ElsewhereProgram] = {}
        self._followed: set[int] = set()
        self._numbers = itertools.count(1)
        self.why_not_kernel: dict[int, str] = {}  # writes labels in a namespace, where it does elsewhere

    def come(self, namespace: Found) -> ElsewhereProgram:
        """The program of a namespace, with the flows that are there. Raises MarkerUnavailable, OSError."""
        label = _label_in(namespace)
        place = next(self._numbers)
        loaded = self._program.elsewhere(place)
        try:
            asyncio.run_coroutine_threadsafe(self._come(namespace, label, place), self._loop).result()
        except BaseException:
            loaded.close()
            raise
        self._loaded[namespace.number] = loaded
        return loaded

    def gone(self, number: int) -> None:
        """A namespace has gone."""
        asyncio.run_coroutine_threadsafe(self._gone(number), self._loop).result()
        self._loaded.pop(number).close()

    async def follow(self, finder: Finder) -> None:
        """As they come and go, where no programs are to be attached. Raises OSError."""
        found, new = await asyncio.wrap_future(in_passing_thread(lambda: self._look(finder)))
        for number in self._followed - found.keys():
            self._followed.remove(number)
            await self._gone(number)
        for number, label in new.items():
            self._followed.add(number)
            await self._come(found[number], label, next(self._numbers))

    def close(self) -> None:
        """Give all programs back to the kernel."""
        while self._loaded:
            self._loaded.popitem()[1].close()

    def _look(self, finder: Finder) -> tuple[dict[int, Found], dict[int, _Label]]:
        """What is there, and what of it is new."""
        found = finder.find()
        new: dict[int, _Label] = {}
        for number in found.keys() - self._followed:
            with contextlib.suppress(OSError):
                new[number] = _label_in(found[number])
        return found, new

    async def _come(self, namespace: Found, label: _Label, place: int) -> None:
        if self._labels is not None and not label.why_not:
            self._labels.set_place(namespace.number, label.cookie, place)
        elif self._labels is not None:
            self.why_not_kernel[namespace.number] = label.why_not
            log.info("namespace %s: labels are not written by the kernel: %s", namespace.name, label.why_not)
        await self._carry_out(self._places.come(namespace.number, place))

    async def _gone(self, number: int) -> None:
        await self._carry_out(self._places.gone(number))
        self.why_not_kernel.pop(number, None)
        if self._labels is not None:
            self._labels.set_place(number, 0, 0)


def _label_in(namespace: Found) -> _Label:
    """Raises OSError."""
    with entered(namespace.path):
        cookie = own_namespace()
        return _Label(cookie, (why_not_by_sysctl() or "") if cookie else "it does not tell namespaces apart")
