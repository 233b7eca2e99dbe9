"""The enrichers that run, in the order of the configuration: none that fails stops the others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from scitags_agent.absent import Absent
from scitags_agent.config import Instance
from scitags_core.flow import FlowEvent
from scitags_core.roles import Enricher

log = logging.getLogger(__name__)


class Enrichment:
    """One agent's."""

    def __init__(self, absent: Absent, failures: Counter[str]) -> None:
        """Those that cannot start go to absent; failures are counted by name."""
        self._absent = absent
        self._failures = failures
        self._running: dict[str, tuple[Instance, Enricher]] = {}
        self._order: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self._running)

    def runs(self, instance: Instance) -> bool:
        """Whether it runs, with just these settings."""
        running = self._running.get(instance.name)
        return running is not None and running[0] == instance

    def enrich(self, event: FlowEvent) -> FlowEvent:
        """The event with what each knows of its flow."""
        for name, (_, enricher) in self._running.items():
            try:
                event = enricher.enrich(event)
            except Exception as error:
                self._failures[name] += 1
                if self._failures[name] == 1:
                    log.exception("enricher %s failed: %s", name, error)
        return event

    def status(self) -> dict[str, Any]:
        """What each counts, by name."""
        return {
            name: {"failed": self._failures[name]} | dict(enricher.counters())
            for name, (_, enricher) in self._running.items()
        }

    async def change_over(self, wanted: Sequence[Instance], fresh: Sequence[tuple[Instance, Enricher]]) -> None:
        """Stop those that are not wanted as they run, and start the fresh ones. All are asked in the order wanted."""
        self._order = [one.name for one in wanted]
        kept = {one.name for one in wanted if self.runs(one)}
        for name in [name for name in self._running if name not in kept]:
            await self._stop(name)
        for instance, enricher in fresh:
            await self._start(instance, enricher)

    async def close(self) -> None:
        """Stop all."""
        for name in list(self._running):
            await self._stop(name)

    async def _start(self, instance: Instance, enricher: Enricher) -> None:
        try:
            await enricher.start()
        except Exception as error:
            await _close(instance.name, enricher)
            self._absent.add(f"enricher {instance.name}", str(error), lambda: self._start(instance, instance.create()))
            return
        self._running[instance.name] = instance, enricher
        self._running = {name: self._running[name] for name in self._order if name in self._running}

    async def _stop(self, name: str) -> None:
        _, enricher = self._running.pop(name)
        await _close(name, enricher)


async def _close(name: str, enricher: Enricher) -> None:
    try:
        await enricher.close()
    except Exception:
        log.exception("enricher %s failed to close", name)
