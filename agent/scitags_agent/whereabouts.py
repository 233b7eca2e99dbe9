"""In which network namespace a reported flow is, where its reporter does not say.

By its addresses, when just one namespace has them; else by its connection, when just one has that. A flow between two
namespaces of this host, and one that could be in several, is left as it is, which means: wherever it is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from scitags_agent.host import OWN, Host
from scitags_agent.presence import ALIVE
from scitags_core.flow import FlowEvent, FlowKey, FlowState

if TYPE_CHECKING:
    from scitags_agent.open_namespaces import OpenNamespace

FLOWS_REMEMBERED = 1 << 17
STRANGE_SECONDS = 1.0


class Whereabouts:
    """Of flows whose events have no namespace. To be used in one event loop alone."""

    def __init__(self, host: Host, gone: Callable[[int], None]) -> None:
        """host looks into other namespaces; gone is told the number of each of them that goes, a moment after."""
        assert host.namespaces is not None
        self._host = host
        self._namespaces = host.namespaces
        self._own = self._namespaces.own
        self._gone = gone
        # What addresses alone do not say, by 5-tuple and id, from a transfer's start to its end: its connection may be
        # gone by then.
        self._known: OrderedDict[tuple[FlowKey, str], int] = OrderedDict()
        self._unsure = 0
        self._namespaces.watch(self._note_come, self._note_gone)

    def close(self) -> None:
        """Watch no more."""
        self._namespaces.unwatch(self._note_come)

    def counters(self) -> Mapping[str, int]:
        """Namespaces that are looked into and that cannot be; transfers of which it is not known where they are."""
        return {
            "present": len(self._namespaces.present),
            "refused": self._namespaces.refused,
            "unsure": self._unsure,
        }

    def may_be_there(self, namespace: int) -> bool:
        """Whether this is the number of one that is meant, also if it cannot be looked into."""
        return self._namespaces.may_be_there(namespace)

    def placed(self, events: Iterable[FlowEvent]) -> list[FlowEvent]:
        """The events with the namespaces of their flows, as far as that can be said. Raises SockDiagError.

        One that names the agent's own by its number gets 0 for it, as the table has it.
        """
        return [self._place(event) if event.key.namespace == OWN else self._said(event) for event in events]

    def _said(self, event: FlowEvent) -> FlowEvent:
        """Of an event whose source knows."""
        if event.key.namespace != self._own:
            return event
        return msgspec.structs.replace(event, key=event.key.within(OWN))

    def _place(self, event: FlowEvent) -> FlowEvent:
        key = event.key
        near, far = set(self._host.homes(key.src)), set(self._host.homes(key.dst))
        if not near and not far:
            # One of them may just have been given to somebody, or its container have come.
            self._namespaces.hurry()
            near = set(self._host.homes(key.src, within=STRANGE_SECONDS))
            far = set(self._host.homes(key.dst, within=STRANGE_SECONDS))
        possible = near | far
        if len(possible) == 1:
            namespace = possible.pop()
        elif not possible or len(near) == len(far) == 1:
            namespace = OWN
        else:
            namespace = self._remembered(event, possible)
        return event if namespace == OWN else msgspec.structs.replace(event, key=key.within(namespace))

    def _remembered(self, event: FlowEvent, possible: set[int]) -> int:
        """Where a flow is that could be in several namespaces: until its end, where it was found at its start."""
        name = event.key, event.transfer_id
        namespace = self._known.get(name) if event.state is not FlowState.START else None
        if namespace is None:
            namespace = self._find(event, possible)
        if event.state is FlowState.END:
            self._known.pop(name, None)
            return namespace
        self._known[name] = namespace
        if len(self._known) > FLOWS_REMEMBERED:
            self._known.popitem(last=False)
        return namespace

    def _note_come(self, _: OpenNamespace) -> None:
        """What is there is asked each time."""

    def _note_gone(self, one: OpenNamespace) -> None:
        # What sources and enrichers have heard of its last connections comes first.
        asyncio.get_running_loop().call_soon(self._gone, one.number)

    def _find(self, event: FlowEvent, possible: set[int]) -> int:
        having = [one for one in possible if self._has(one, event)]
        if len(having) == 1:
            return having[0]
        self._unsure += event.state is FlowState.START
        return OWN

    def _has(self, namespace: int, event: FlowEvent) -> bool:
        for near in (event.key, event.key.reversed()):
            key = near.within(namespace)
            if namespace == OWN:
                found = self._host.lookup.find(key, zone=event.zone, details=False)
            else:
                found = self._host.find(key, zone=event.zone, details=False)
            if found is not None and found.state in ALIVE:
                return True
        return False
