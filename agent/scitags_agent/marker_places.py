"""Network namespaces as a marker tells them apart, and the flows that may be in any of them.

A flow whose namespace is known is marked there alone. One that may be anywhere is marked in all that the marker looks
into, and in those that come later. What is in a namespace that the marker does not look into (yet) is marked where it
leaves the agent's own. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from scitags_core.flow import FlowChange, FlowKey

OWN = 0


class Places:
    """By the numbers of namespaces (scitags_core.flow.FlowKey), what stands for each in keys of the kernel's maps."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        # Of flows that are under way, the change that has told of their mark: those that may be anywhere, and those
        # that are where the marker does not look.
        self._anywhere: dict[FlowKey, FlowChange] = {}
        self._astray: dict[FlowKey, FlowChange] = {}

    def place_of(self, namespace: int) -> int:
        """0 for the agent's own, and for one that is not looked into."""
        return self._places.get(namespace, OWN)

    def spread(self, changes: Iterable[FlowChange]) -> list[FlowChange]:
        """The changes as the marker is to carry them out, one for each namespace that they concern."""
        found: list[FlowChange] = []
        for change in changes:
            key = change.event.key
            if key.namespace in self._places:
                found.append(change)
                continue
            remembered = self._astray if key.namespace != OWN else self._anywhere
            if change.users:
                remembered[key] = change
            elif remembered.pop(key, None) is None and key.namespace != OWN:
                continue  # its mark went with its namespace, and an equal flow in our own is another
            found.append(change if key.namespace == OWN else _within(OWN, change))
            if key.namespace == OWN:
                found += [_within(namespace, change) for namespace in self._places]
        return found

    def come(self, namespace: int, place: int) -> list[FlowChange]:
        """It is looked into from now on; what is to be carried out for flows that are under way.

        place stands for it, 1..MAX_PLACE, and for no other.
        """
        self._places[namespace] = place
        found = [_within(namespace, change) for change in self._anywhere.values()]
        for key in [key for key in self._astray if key.namespace == namespace]:
            change = self._astray.pop(key)
            found += [_ended(_within(OWN, change)), change]
        return found

    def gone(self, namespace: int) -> list[FlowChange]:
        """The opposite, of flows that may be anywhere. Of those that were there alone nothing is to be carried out any
        more, and they end by themselves.
        """
        self._places.pop(namespace, None)
        return [_ended(_within(namespace, change)) for change in self._anywhere.values()]


def _within(namespace: int, change: FlowChange) -> FlowChange:
    event = change.event
    return msgspec.structs.replace(
        change, event=msgspec.structs.replace(event, key=event.key.within(namespace)), serial=0
    )


def _ended(change: FlowChange) -> FlowChange:
    return msgspec.structs.replace(change, users=0, mark=None)
