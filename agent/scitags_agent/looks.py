"""When it is time to look at interfaces again: every so often, and at once when a network namespace has come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scitags_agent.open_namespaces import Namespaces, OpenNamespace

log = logging.getLogger(__name__)

# A container may get its interfaces a moment after its first process.
SETTLING_SECONDS = 0.5


class Looks:
    """To be made and used in one event loop."""

    def __init__(self, pause: float, namespaces: Sequence[str] = ()) -> None:
        """pause is in seconds; namespaces are patterns. Raises ConfigError for them."""
        self._pause = pause
        self._namespaces: Namespaces | None = None
        self._came = asyncio.Event()
        self._is_settling = False
        if namespaces:
            from scitags_agent.open_namespaces import shared  # noqa: PLC0415  # few agents need it

            there = shared(namespaces)
            try:
                there.begin()
            except OSError as error:
                log.warning("of namespaces that come nobody will hear at once: %s", error)
                return
            self._namespaces = there
            there.watch(self._note_come, self._note_gone)
            self._came.clear()  # those that are there already are seen by the first look

    def close(self) -> None:
        """Wait for no more namespaces."""
        if self._namespaces is not None:
            self._namespaces.unwatch(self._note_come)
            self._namespaces.end()
            self._namespaces = None

    async def next(self) -> None:
        """Return when it is time."""
        if self._is_settling:
            self._is_settling = False
            await asyncio.sleep(min(SETTLING_SECONDS, self._pause))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._came.wait(), self._pause)
        self._is_settling = self._came.is_set()
        self._came.clear()

    def _note_come(self, _: OpenNamespace) -> None:
        self._came.set()

    def _note_gone(self, _: OpenNamespace) -> None:
        """That can wait for the next look."""
