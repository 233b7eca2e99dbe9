"""A marker in other network namespaces than the agent's own, as these come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from scitags_agent.bpf.connections import own_namespace
from scitags_agent.bpf.kernel_label import why_not_by_sysctl
from scitags_agent.bpf.loader import MarkerProgram
from scitags_agent.bpf.namespaces import enter, in_passing_thread
from scitags_agent.marker_places import Places
from scitags_agent.namespaces import Finder, Found
from scitags_agent.programs_elsewhere import ProgramsElsewhere
from scitags_agent.socket_labels import SocketLabels
from scitags_core.flow import FlowChange

log = logging.getLogger(__name__)


class _Label(msgspec.Struct, frozen=True):
    """Of a namespace: what the kernel calls it, and why it cannot write labels there itself."""

    cookie: int
    why_not: str


class MarkerElsewhere:
    """The marker's part of it: what is to be done in the table, and by the kernel itself."""

    def __init__(
        self,
        program: MarkerProgram,
        places: Places,
        labels: SocketLabels | None,
        carry_out: Callable[[Sequence[FlowChange]], None],
        forget: Callable[[int], None],
    ) -> None:
        """carry_out is called in the event loop, with changes that are spread already; forget(number) with a namespace
        whose flows are to be marked there no more.
        """
        self._places, self._labels, self._carry_out, self._forget = places, labels, carry_out, forget
        self._followed: set[int] = set()
        self.programs = ProgramsElsewhere(program.elsewhere, self._came, self._gone)
        self.why_not_kernel: dict[int, str] = {}  # writes labels in a namespace, where it does elsewhere

    async def follow(self, finder: Finder) -> None:
        """As they come and go, where no programs are to be attached. Raises OSError."""
        found = await asyncio.wrap_future(in_passing_thread(finder.find))
        for number in self._followed - found.keys():
            self._followed.remove(number)
            await self._gone(number)
            self.programs.give_back(number)
        for number in found.keys() - self._followed:
            place = self.programs.take_place(number)
            try:
                await self._came(found[number], place)
            except OSError as error:
                self.programs.give_back(number)
                if not isinstance(error, FileNotFoundError):  # it may have gone again
                    raise
            else:
                self._followed.add(number)

    async def _came(self, namespace: Found, place: int) -> None:
        if self._labels is not None:
            label = await asyncio.wrap_future(in_passing_thread(partial(_label_in, namespace)))
            if label.why_not:
                self.why_not_kernel[namespace.number] = label.why_not
                log.info("namespace %s: labels are not written by the kernel: %s", namespace.name, label.why_not)
            else:
                self._labels.set_place(namespace.number, label.cookie, place)
        self._carry_out(self._places.come(namespace.number, place))

    async def _gone(self, number: int) -> None:
        self._carry_out(self._places.gone(number))
        self._forget(number)
        self.why_not_kernel.pop(number, None)
        if self._labels is not None:
            self._labels.set_place(number, 0, 0)


def _label_in(namespace: Found) -> _Label:
    """Raises OSError."""
    enter(namespace.path)  # and stay: the thread ends
    cookie = own_namespace()
    return _Label(cookie, (why_not_by_sysctl() or "") if cookie else "it does not tell namespaces apart")
