"""A program on the way out of all interfaces that are meant, as they come and go.

Where something is kept for the next agent, the program stays on its interfaces when this one is killed: their ids are
written down, and the next agent's program takes the places.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from scitags_agent.bpf.attach import Attachment, EntryPoints, Way, attach
from scitags_agent.bpf.interfaces import Interface, matching
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.namespaces import inside

if TYPE_CHECKING:
    from scitags_agent.namespaces import Finder, Found

log = logging.getLogger(__name__)

PROGRAMS = "programs"
CLSACT = "clsact"  # a file that says that an agent has used it
PROGRAMS_REMEMBERED = 1 << 12


class Program(EntryPoints, Protocol):
    """A loaded program."""

    @property
    def program_ids(self) -> list[int]:
        """What the kernel calls its entry points."""


class Elsewhere(Protocol):
    """Has programs for other network namespaces. Called in a thread."""

    def come(self, namespace: Found) -> Program:
        """The one that is attached in a namespace from now on. Raises MarkerUnavailable, OSError."""

    def gone(self, number: int) -> None:
        """In this namespace it is attached no more."""


class Placement:
    """Where one program is attached."""

    def __init__(
        self,
        program: Program,
        patterns: Sequence[str],
        *,
        name: str,
        namespaces: Sequence[str] = (),
        elsewhere: Elsewhere | None = None,
        way: Way = "auto",
        home: Path | None = None,
        looked: Callable[[set[Interface]], None] = lambda _: None,
    ) -> None:
        """namespaces are patterns of others than the agent's own (scitags_agent.namespaces).

        elsewhere has programs for them; where it is None, it is the same program everywhere.

        home is where something can be kept; name that of the filter where clsact is used.

        looked is called at each look at the interfaces, in a thread, with those that are meant, before anything is
        attached to new ones.

        Raises OSError when nothing can be written in home, ConfigError for patterns.
        """
        self._program = program
        self._patterns = patterns
        self._namespaces: Finder | None = None
        if namespaces:
            from scitags_agent.namespaces import Finder  # noqa: PLC0415  # few agents need it

            self._namespaces = Finder(namespaces)
        self._elsewhere = elsewhere
        # Of other namespaces, by their numbers: the files by which they are found change while they live on.
        self._programs: dict[int, Program] = {}
        self._others: dict[int, Found] = {}
        self._name = name
        self._way = way
        self._home = home
        self._looked = looked
        self._attached: dict[Interface, Attachment] = {}
        self._unattachable: dict[Interface, str] = {}
        self._closed_namespaces: set[str] = set()
        # Attaching speaks netlink, which waits for its answers: it is done in a thread. One of our own, as it is in the
        # network namespace in which it was made, whoever leaves that meanwhile.
        self._worker = ThreadPoolExecutor(1, "scitags-interfaces")
        self._closing = False
        self._earlier = self._note_programs(home) if home is not None else None
        self.failed_looks = 0

    def __len__(self) -> int:
        """On how many interfaces it is."""
        return len(self._attached)

    @property
    def attached(self) -> frozenset[Interface]:
        """Those interfaces."""
        return frozenset(self._attached)

    def covers(self, namespace: int, index: int) -> bool:
        """Whether the program is on this interface (Interface); before the start, whether that cannot be said yet."""
        attached = list(self._attached)
        return not attached or any((one.namespace, one.index) == (namespace, index) for one in attached)

    async def start(self) -> None:
        """Attach to what is there. MarkerUnavailable when none of that can be attached to."""
        await self._in_thread(self._look)
        if not self._attached:
            if self._unattachable:
                reasons = "; ".join(f"{one.name}: {why}" for one, why in self._unattachable.items())
                raise MarkerUnavailable(f"no interface could be attached to: {reasons}")
            # At boot an agent may be there before its interfaces are.
            names = ", ".join(self._patterns)
            log.error("no interface is there to mark on, and it is looked again (interfaces: %s)", names)

    async def look(self) -> None:
        """Attach to interfaces that have come, forget those that have gone. A failure is counted."""
        try:
            await self._in_thread(self._look)
        except Exception as error:  # whatever it was, the next look may go well
            self.failed_looks += 1
            if self.failed_looks == 1:
                log.error("the interfaces cannot be looked at: %s (said once, counted from here)", error)

    async def close(self, *, keep: bool) -> None:
        """Take the program off all interfaces and forget it, unless it is to be kept there."""
        # In any case behind what the thread is at, which may need the event loop.
        await self._in_thread(self._stop if keep else self._detach_all)
        self._worker.shutdown()
        if not keep and self._home is not None:
            (self._home / PROGRAMS).unlink(missing_ok=True)

    def _in_thread(self, function: Callable[[], None]) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._worker, function)

    def _note_programs(self, home: Path) -> list[int]:
        """Write down the ids of our programs, before they are anywhere; those that earlier agents wrote down."""
        path = home / PROGRAMS
        try:
            earlier = msgspec.json.decode(path.read_bytes(), type=list[int])[-PROGRAMS_REMEMBERED:]
        except (OSError, msgspec.DecodeError):
            earlier = []
        self._write_programs(home, earlier)
        return earlier

    def _write_programs(self, home: Path, earlier: list[int]) -> None:
        ours = [number for one in (self._program, *self._programs.values()) for number in one.program_ids]
        replacement = home / f"{PROGRAMS}.new"
        replacement.write_bytes(msgspec.json.encode(earlier + ours))
        replacement.replace(home / PROGRAMS)

    # --- in a thread -------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._closing = True

    def _detach_all(self) -> None:
        self._stop()
        for interface, attachment in self._attached.items():
            self._detach(interface, attachment)
        self._attached.clear()

    def _look(self) -> None:
        if not self._closing:
            self._follow_interfaces()

    def _follow_interfaces(self) -> None:
        present = self._present()
        for interface, attachment in list(self._attached.items()):
            if interface not in present or not self._is_alive(interface, attachment):
                self._tell_of_loss(interface, is_there=interface in present)
                self._detach(interface, self._attached.pop(interface))
        for gone in self._unattachable.keys() - present:
            del self._unattachable[gone]
        here = {one.namespace for one in present}
        self._others = {number: one for number, one in self._others.items() if number in here}
        for number in self._programs.keys() - here:
            del self._programs[number]
            if self._elsewhere is not None:
                self._elsewhere.gone(number)
        self._looked(present)
        for interface in sorted(present - self._attached.keys(), key=lambda one: one.index):
            self._try(interface)

    def _tell_of_loss(self, interface: Interface, *, is_there: bool) -> None:
        """That of a container goes with it, and so does its other end: no surprise."""
        if is_there:
            log.warning("interface %s: our program was taken away", self._shown(interface))
        else:
            level = logging.WARNING if self._namespaces is None else logging.INFO
            log.log(level, "interface %s: has gone", self._shown(interface))

    def _try(self, interface: Interface) -> None:
        """Attach to an interface, if that can be."""
        try:
            attached = self._attach(interface)
        except OSError as error:
            if interface.namespace and isinstance(error, FileNotFoundError | ProcessLookupError):
                return  # the namespace has gone again
            if interface not in self._unattachable:
                log.error("interface %s cannot be attached to, and is tried again: %s", self._shown(interface), error)
            self._unattachable[interface] = str(error)
            return
        self._unattachable.pop(interface, None)
        self._attached[interface] = attached
        if self._home is not None and attached.way == "clsact":
            (self._home / CLSACT).touch()
        log.info("interface %s: packets are marked at tc egress (%s)", self._shown(interface), attached.way)

    def _attach(self, interface: Interface) -> Attachment:
        with inside(interface.namespace, self._others):
            return attach(
                self._programs.get(interface.namespace, self._program),
                interface.index,
                ethernet=interface.ethernet,
                way=self._way,
                name=self._name,
                earlier=self._earlier,
                clsact_before=self._home is None or (self._home / CLSACT).exists(),
            )

    def _present(self) -> set[Interface]:
        """The interfaces that are meant, in every namespace that can be looked into."""
        present = set(matching(self._patterns))
        if self._namespaces is None:
            return present
        closed: dict[str, str] = {}
        meant = self._namespaces.find()
        self._others |= meant  # those that are not meant any more are entered once more, to leave them
        for one in meant.values():
            try:
                with inside(one.number, self._others):
                    found = matching(self._patterns, one.number)
                if found:
                    self._have_program(one)
                present.update(found)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has gone again
            except (OSError, MarkerUnavailable) as error:
                closed[one.name] = str(error)
        for name in closed.keys() - self._closed_namespaces:
            log.error("namespace %s cannot be looked into, and is tried again: %s", name, closed[name])
        self._closed_namespaces = set(closed)
        return present

    def _have_program(self, namespace: Found) -> None:
        """Raises MarkerUnavailable, OSError."""
        if self._elsewhere is not None and namespace.number not in self._programs:
            self._programs[namespace.number] = self._elsewhere.come(namespace)
            if self._home is not None:
                self._write_programs(self._home, self._earlier or [])

    def _is_alive(self, interface: Interface, attachment: Attachment) -> bool:
        try:
            with inside(interface.namespace, self._others):
                return attachment.is_alive()
        except OSError:
            return False

    def _detach(self, interface: Interface, attachment: Attachment) -> None:
        try:
            with inside(interface.namespace, self._others):
                attachment.detach()
        except OSError:  # a namespace that has gone has taken everything with it
            attachment.let_go()

    def _shown(self, interface: Interface) -> str:
        if not interface.namespace:
            return interface.name
        known = self._others.get(interface.namespace)
        return f"{interface.name} in {known.name if known is not None else f'net:[{interface.namespace}]'}"
