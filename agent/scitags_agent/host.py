"""This host as connections see it: the agent's network namespace, and those besides that are configured.

Without any besides, nothing more is opened, looked at or imported than the agent's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from scitags_agent.connections import HERE, Lookup, Place
from scitags_agent.departures import Departures
from scitags_agent.inet_diag import Connection
from scitags_agent.local_address import is_local
from scitags_core.flow import FlowKey

if TYPE_CHECKING:
    from scitags_agent.open_namespaces import Namespaces, OpenNamespace

log = logging.getLogger(__name__)

OWN = 0
ADDRESS_SECONDS = 10.0
# A container that has just come may get its addresses after that.
SETTLING_SECONDS = 30.0
NEW_ADDRESS_SECONDS = 0.5
ADDRESSES_REMEMBERED = 1 << 14
_NEVER = float("-inf")


class Host:
    """One for each that asks. To be used in one event loop alone."""

    def __init__(self, namespaces: Sequence[str] = ()) -> None:
        """namespaces are patterns (scitags_agent.namespaces). Raises SockDiagError, and ConfigError for patterns."""
        self.namespaces: Namespaces | None = None
        self._own = 0
        self._came = _NEVER  # the last of the namespaces
        self._homes: dict[str, tuple[float, tuple[int, ...]]] = {}
        self.lookup = Lookup()
        if namespaces:
            from scitags_agent.open_namespaces import shared  # noqa: PLC0415  # few agents need it

            self.namespaces = shared(namespaces)
            self._own = self.namespaces.own
            self.namespaces.begin()
            self.namespaces.watch(self._forget_homes, self._forget_homes)

    def close(self) -> None:
        """Look no more."""
        self.lookup.close()
        if self.namespaces is not None:
            self.namespaces.unwatch(self._forget_homes)
            self.namespaces.end()
            self.namespaces = None

    @property
    def places(self) -> list[Place]:
        """All, the agent's own first."""
        return [HERE, *self.namespaces.present.values()] if self.namespaces is not None else [HERE]

    def said(self, key: FlowKey) -> FlowKey:
        """A connection's key as a source says it to the agent, which takes 0 for not known (Whereabouts)."""
        return key.within(key.namespace or self._own)

    def named(self, number: int) -> str:
        """What people call a namespace."""
        one = self.namespaces.present.get(number) if self.namespaces is not None else None
        return one.name if one is not None else f"net:[{number}]"

    def find(self, key: FlowKey, *, zone: str = "", details: bool = True) -> Connection | None:
        """The connection whose near end is the key's source: in the key's namespace, or wherever, if it names none.

        Raises SockDiagError.
        """
        if key.namespace == OWN:
            found = self.lookup.find(key, zone=zone, details=details)
            if found is not None or self.namespaces is None:
                return found
        others = self.namespaces.present if self.namespaces is not None else {}
        # Where the address is not, the connection is not.
        numbers = self.homes(key.src) if key.namespace == OWN else (key.namespace,)
        for one in filter(None, map(others.get, numbers)):
            found = one.lookup.find(key, zone=zone, details=details)
            if found is not None:
                return found
        return None

    def homes(self, address: str, *, within: float = ADDRESS_SECONDS) -> Collection[int]:
        """In which namespaces an address is local, by their numbers; as of so many seconds ago at most."""
        now = time.monotonic()
        if now - self._came < SETTLING_SECONDS:
            within = min(within, NEW_ADDRESS_SECONDS)
        when, homes = self._homes.get(address, (_NEVER, ()))
        if when < now - within:
            own = (OWN,) if is_local(address) else ()
            others = self.namespaces.present if self.namespaces is not None else {}
            homes = (*own, *(one.number for one in others.values() if one.is_local(address)))
            if len(self._homes) >= ADDRESSES_REMEMBERED:
                self._homes.clear()
            self._homes[address] = now, homes
        return homes

    def only_home(self, address: str) -> int:
        """The one namespace in which an address is local; 0 when that is the agent's own, or not one alone."""
        if self.namespaces is None:
            return OWN
        homes = self.homes(address)
        return next(iter(homes)) if len(homes) == 1 else OWN

    def is_local(self, address: str, namespace: int = OWN) -> bool:
        """Whether an address is one of that namespace; of any, where none is named."""
        if self.namespaces is None:
            return is_local(address)
        homes = self.homes(address)
        return namespace in homes if namespace else bool(homes)

    def has_just_got(self, address: str) -> bool:
        """Whether an address that was not local is so by now, in a namespace that nobody has looked for yet."""
        return self.namespaces is not None and self.namespaces.hurry() and self.is_local(address)

    def _forget_homes(self, _: OpenNamespace) -> None:
        self._homes.clear()
        self._came = time.monotonic()


class HostDepartures:
    """Hears of each socket that goes, in all namespaces; see Departures."""

    def __init__(self, host: Host, heard: Callable[[Connection], None]) -> None:
        """Raises SockDiagError where the kernel does not tell."""
        self._host = host
        self._heard = heard
        self._by_namespace: dict[int, Departures] = {}
        self._lost = 0
        self._add(OWN, Departures(heard))
        if host.namespaces is not None:
            host.namespaces.watch(self._come, self._gone)

    @property
    def lost(self) -> int:
        """How often some were missed."""
        return self._lost + sum(one.lost for one in self._by_namespace.values())

    def read(self, namespace: int = OWN) -> None:
        """Take what is there, in the namespace or in all, if none is named."""
        for number, one in list(self._by_namespace.items()):
            if namespace in (OWN, number):
                one.read()

    def close(self) -> None:
        """Hear no more."""
        if self._host.namespaces is not None:
            self._host.namespaces.unwatch(self._come)
        for number in list(self._by_namespace):
            self._remove(number)

    def _come(self, one: OpenNamespace) -> None:
        try:
            self._add(one.number, Departures(self._heard, one.number, one.netlink()))
        except OSError as error:
            log.warning("namespace %s: %s", one.name, error)

    def _gone(self, one: OpenNamespace) -> None:
        if one.number in self._by_namespace:
            self._by_namespace[one.number].read()  # its last ones
            self._remove(one.number)

    def _add(self, number: int, departures: Departures) -> None:
        self._by_namespace[number] = departures
        asyncio.get_running_loop().add_reader(departures, departures.read)

    def _remove(self, number: int) -> None:
        departures = self._by_namespace.pop(number)
        asyncio.get_running_loop().remove_reader(departures)
        self._lost += departures.lost
        departures.close()
