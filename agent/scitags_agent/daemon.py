"""The daemon: start everything, pass events from sources through the table to backends, stop in time."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from scitags_agent.config import Config, Instance
from scitags_agent.fanout import Fanout, Lane
from scitags_agent.table import FlowTable
from scitags_core import __version__
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowEvent
from scitags_core.roles import Enricher, Source

log = logging.getLogger(__name__)
events_log = logging.getLogger("scitags_agent.events")

SETTLE_SECONDS = 1.0
EXPIRY_SECONDS = 10.0
FIRST_RESTART_SECONDS = 0.5
LAST_RESTART_SECONDS = 30.0
REFUSALS_LOGGED = 20  # for each source; a peer that sends rubbish must not fill the disk


class Inlet:
    """The sink of one source: counts, and passes on to the daemon."""

    def __init__(self, name: str, daemon: Daemon) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self._daemon = daemon

    def accept(self, event: FlowEvent) -> None:
        self.counters["accepted"] += 1
        self._daemon.accept(event, self.name)

    def refuse(self, reason: str) -> None:
        self.counters["refused"] += 1
        if self.counters["refused"] <= REFUSALS_LOGGED:
            log.warning("refused", extra={"fields": {"source": self.name, "reason": reason}})
        if self.counters["refused"] == REFUSALS_LOGGED:
            log.warning("source %s: further refusals are only counted", self.name)

    async def settled(self) -> None:
        await self._daemon.fanout.drained(SETTLE_SECONDS)

    def status(self) -> dict[str, Any]:
        return self._daemon.status()


class Daemon:
    """One agent. run() is its life."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._inlets: list[Inlet] = []
        self._enrichers: list[tuple[str, Enricher]] = []
        self._started = time.monotonic()
        self._log_events = config.log.events
        self.fanout = Fanout()
        self.table = FlowTable(max_users=config.table.max_transfers, idle=timedelta(seconds=config.table.idle_seconds))
        self.enricher_failures: Counter[str] = Counter()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. ConfigError when a required part cannot start."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP: the configuration is read at start only")
        loop.add_signal_handler(signal.SIGUSR1, self._log_status)
        tasks: list[asyncio.Task[None]] = []
        try:
            # Settings are tried whole before anything outside the process is touched.
            sources = [(one, one.create()) for one in self._config.sources]
            self._enrichers = [(one.name, one.create()) for one in self._config.enrichers]
            await self._start_backends()
            tasks += [asyncio.create_task(self._keep_running(one, source)) for one, source in sources]
            tasks.append(asyncio.create_task(self._expire()))
            log.info("scitags-agent %s is ready", __version__)
            notify_service_manager("READY=1")
            await stop.wait()
            log.info("stopping")
        finally:
            notify_service_manager("STOPPING=1")
            await self._shut_down(tasks)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                loop.remove_signal_handler(number)

    def accept(self, event: FlowEvent, source: str) -> None:
        """Take one event from a source: enrich it, apply it to the table, tell the backends."""
        for name, enricher in self._enrichers:
            try:
                event = enricher.enrich(event)
            except Exception as error:
                self.enricher_failures[name] += 1
                if self.enricher_failures[name] == 1:
                    log.exception("enricher %s failed: %s", name, error)
        if self._log_events:
            self._log_event(event, source)
        change = self.table.apply(event, datetime.now(UTC))
        if change is not None:
            self.fanout.put(change)

    def status(self) -> dict[str, Any]:
        """Everything counted, ready for JSON."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "sources": {inlet.name: dict(inlet.counters) for inlet in self._inlets},
            "enrichers": dict(self.enricher_failures),
            "table": {"flows": len(self.table), "transfers": self.table.users, **self.table.counters},
            "backends": {lane.name: lane.status() for lane in self.fanout.lanes},
        }

    async def _start_backends(self) -> None:
        for instance, options in self._config.backends:
            backend = instance.create()
            try:
                await backend.start()
            except Exception as error:
                await backend.close()
                if options.required:
                    raise ConfigError(f"required backend {instance.name} cannot start: {error}") from error
                log.error("backend %s cannot start and is left out: %s", instance.name, error)
                continue
            self.fanout.add(Lane(instance.name, backend, options.queue))

    async def _keep_running(self, instance: Instance, source: Source) -> None:
        """Run a source, and again when it fails, after a pause that grows."""
        inlet = Inlet(instance.name, self)
        self._inlets.append(inlet)
        pause = FIRST_RESTART_SECONDS
        while True:
            began = time.monotonic()
            try:
                await source.run(inlet)
                log.error("source %s ended by itself", instance.name)
            except Exception as error:
                expected = isinstance(error, OSError | ConfigError)
                log.error("source %s failed: %s", instance.name, error, exc_info=None if expected else error)
            inlet.counters["restarts"] += 1
            if time.monotonic() - began > LAST_RESTART_SECONDS:
                pause = FIRST_RESTART_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_RESTART_SECONDS)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            for change in self.table.expire(datetime.now(UTC)):
                self.fanout.put(change)

    async def _shut_down(self, tasks: list[asyncio.Task[None]]) -> None:
        """Sources first, then what they brought is worked off, then the backends close."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not await self.fanout.drained(self._config.agent.shutdown_seconds):
            log.error("stopped with changes still queued: the deadline has passed")
        await self.fanout.close()

    def _log_event(self, event: FlowEvent, source: str) -> None:
        fields = {
            "source": source,
            "state": event.state.value,
            "flow": str(event.key),
            "experiment": event.tag.experiment,
            "activity": event.tag.activity,
        }
        events_log.info("event", extra={"fields": fields})

    def _log_status(self) -> None:
        log.info("status", extra={"fields": self.status()})


def notify_service_manager(state: str) -> None:
    """Tell systemd, where it asked to be told (sd_notify); nothing happens elsewhere."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", state, error)
