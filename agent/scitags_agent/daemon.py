"""The daemon: start everything, pass events from sources through the table to backends, stop in time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from scitags_agent.absent import Absent
from scitags_agent.config import AUTO, BackendOptions, Config, Instance
from scitags_agent.enrichment import Enrichment
from scitags_agent.fanout import Fanout, Lane
from scitags_agent.inlet import Inlet
from scitags_agent.ledger import Frame, Ledger
from scitags_agent.log import set_up as set_up_log
from scitags_agent.lookout import Lookout
from scitags_agent.notify import Notifier, descriptor_name, handed_over
from scitags_agent.table import FlowTable
from scitags_core import __version__
from scitags_core.errors import ConfigError, ScitagsError
from scitags_core.flow import FlowChange, FlowEvent, FlowKey
from scitags_core.roles import (
    FlowMark,
    Inheritance,
    ShowsStatus,
    Source,
    TellsMarks,
)

log = logging.getLogger(__name__)
events_log = logging.getLogger("scitags_agent.events")

EXPIRY_SECONDS = 10.0
LEDGER_AGAIN_SECONDS = 1.0
CLAIM_SECONDS = 2.0
FIRST_RESTART_SECONDS = 0.5
LAST_RESTART_SECONDS = 30.0
# What an event may hold, from whoever's source, that the ledger has no form for: it costs that, and no neighbour.
NOT_WRITABLE = (OverflowError, TypeError, UnicodeError, RecursionError)
OWN = "table"  # the source of the events that the agent makes by itself


class Daemon:
    """One agent. run() is its life."""

    def __init__(self, config: Config, reread: Callable[[], Config] | None = None) -> None:
        """reread brings the configuration as it is now, for a reload; ConfigError where it is bad."""
        self._config = config
        self._reread = reread
        self._inlets: dict[str, Inlet] = {}
        self._sources: dict[str, tuple[Instance, asyncio.Task[None]]] = {}
        self._backends: dict[str, tuple[Instance, BackendOptions]] = {}
        self._ledger: Ledger | None = None
        self._positions: dict[str, bytes] = {}
        self._started = time.monotonic()
        self._reloading = asyncio.Lock()
        self._absent = Absent()
        self._is_full_said = False
        self._gap_until = 0.0  # when the ledger lacks something: when it is tried again to write it whole
        self._notifier = Notifier.from_environment()
        self._kept = handed_over()  # by an earlier agent, and not claimed yet
        self.fanout = Fanout()
        self.table = FlowTable(
            max_users=config.table.max_transfers,
            idle=timedelta(seconds=config.table.idle_seconds),
            reorder=timedelta(seconds=config.table.reorder_seconds),
        )
        self.failures: Counter[str] = Counter()  # of enrichers and backends, by name, of the ledger, and of sock_diag
        self._enrichment = Enrichment(self._absent, self.failures)
        self.lookout = Lookout(config, self.table, self.fanout, self.failures, end=self.end_connections)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. ConfigError when a required part cannot start."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        chores: list[asyncio.Task[None]] = []
        for number, action in (
            (signal.SIGTERM, stop.set),
            (signal.SIGINT, stop.set),
            (signal.SIGHUP, lambda: chores.append(loop.create_task(self._reload_by_signal()))),
            (signal.SIGUSR1, self._log_status),
        ):
            loop.add_signal_handler(number, action)
        try:
            # Settings are tried whole before anything outside the process is touched.
            enrichers = [(one, one.create()) for one in self._config.enrichers]
            backends = [(one, options, one.create()) for one, options in self._config.backends]
            sources = [(one, one.create()) for one in self._config.sources]
            changes = self._inherit()
            self.lookout.open_namespaces()
            await self._enrichment.change_over(self._config.enrichers, enrichers)
            for one, options, backend in backends:
                await self._start_backend(one, options, backend, changes)
            self._begin_ledger()
            self.lookout.begin()
            for one, source in sources:
                self._start_source(one, source)
            to_do = (
                self._expire,
                self._report,
                self.lookout.look_for_gone,
                partial(self._absent.keep_trying, self._reloading),
                self._close_unclaimed,
                self._notifier.keep_alive,
            )
            chores += [asyncio.create_task(chore()) for chore in to_do]
            log.info("scitags-agent %s is ready", __version__)
            self._notifier.ready()
            await stop.wait()
            log.info("stopping")
        finally:
            self._notifier.stopping()
            await self._shut_down(chores)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                loop.remove_signal_handler(number)

    def accept(self, events: Sequence[FlowEvent], source: str, position: bytes = b"") -> None:
        """Take events from a source: enrich them, write them down, apply them to the table, tell the backends."""
        incomplete = [event for event in events if not (event.key.src_port and event.key.dst_port)]
        if incomplete and self._config.table.match:
            events = [event for event in events if event.key.src_port and event.key.dst_port]
            for event in incomplete:
                self.lookout.match_later(event, partial(self._take, source=source))
        if source != OWN:
            events = self.lookout.placed(events)
        self._take(events, source, position)

    def _take(self, events: Sequence[FlowEvent], source: str, position: bytes = b"") -> None:
        if self._enrichment:
            events = [self._enrichment.enrich(event) for event in events]
        if self._config.log.events:
            for event in events:
                self._log_event(event, source)
        now = datetime.now(UTC)
        ledger = self._ledger
        if ledger is not None:
            self._write_down(ledger, Frame(source, position, now, list(events)))
        changes = self.table.apply_all(events, now)
        if changes:
            self.fanout.put(changes)
        if len(changes) < len(events):
            self._complain_when_full()
        if ledger is not None and (ledger.is_long or (self._gap_until and time.monotonic() > self._gap_until)):
            self._begin_ledger()

    def _complain_when_full(self) -> None:
        if self.table.counters["table_full"] and not self._is_full_said:
            self._is_full_said = True
            most = self._config.table.max_transfers
            log.error("%d transfers are under way: what starts beyond is refused (said once, counted from here)", most)

    def inheritance_of(self, name: str, under_way: Sequence[FlowChange] = ()) -> Inheritance:
        """What earlier agents have left for a source or a backend."""
        if self._ledger is None:
            return Inheritance(None, b"", under_way)
        return Inheritance(self._ledger.home(name), self._positions.get(name.removeprefix("source "), b""), under_way)

    def keep(self, name: str, descriptor: int | None) -> None:
        """Have a descriptor held open by the service manager, in place of what it held under that name."""
        self._notifier.let_go(name)
        if descriptor is not None:
            self._notifier.keep(name, descriptor)

    def take_kept(self, name: str) -> list[int]:
        """What the service manager held under that name since an earlier agent died."""
        return self._kept.pop(descriptor_name(name), [])

    def prepare_to_match(self) -> None:
        """Watch connections from now on."""
        self.lookout.prepare_to_match()

    async def match(
        self, event: FlowEvent, *, sent: float | None = None, is_redirected: bool = False
    ) -> FlowEvent | None:
        """The event with the 5-tuple of the connection of this host that it means; None when that cannot be said."""
        return await self.lookout.match(event, sent=sent, is_redirected=is_redirected)

    def status(self) -> dict[str, Any]:
        """Everything counted, ready for JSON."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "sources": {name: dict(inlet.counters) for name, inlet in self._inlets.items()},
            "refusals": {name: dict(inlet.reasons) for name, inlet in self._inlets.items() if inlet.reasons},
            "enrichers": self._enrichment.status(),
            "table": {"flows": len(self.table), "transfers": self.table.users, **self.table.totals()},
            **self.lookout.status(),
            "ledger": {"kept": self._ledger is not None, "failed": self.failures["ledger"]},
            "backends": {lane.name: lane.status() for lane in self.fanout.lanes},
            "absent": self._absent.shown(),
        }

    def flows(self, first: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Transfers under way, ready for JSON, the longest silent first."""
        markers = {lane.name: lane.backend for lane in self.fanout.lanes if isinstance(lane.backend, TellsMarks)}
        transfers = ((key, flow, user) for key, flow in self.table.flows() for user in flow.users)
        last = None if limit is None else first + limit
        return [
            {
                **self.lookout.place_of(key),
                "protocol": key.protocol,
                "src": key.src,
                "src_port": key.src_port,
                "dst": key.dst,
                "dst_port": key.dst_port,
                "experiment": user.tag.experiment,
                "activity": user.tag.activity,
                "start_time": user.start_time.isoformat(),
                "id": user.transfer_id,
                "application": user.application,
                "transfers_on_connection": len(flow.users),
                "marks": {
                    name: {"by": mark.by, "why": mark.why}
                    for name, backend in markers.items()
                    if (mark := _mark_of(name, backend, key)) is not None
                },
            }
            for key, flow, user in itertools.islice(transfers, first, last)
        ]

    def end_connections(self, keys: Sequence[FlowKey]) -> None:
        """End every transfer on connections that are known to be gone."""
        now = datetime.now(UTC)
        ends = [event for key in keys for event in self.table.ends(key, now)]
        if ends:
            self.table.expect_late_ends(keys)
            self.table.counters["gone"] += len(ends)
            self.accept(ends, OWN)

    # --- a new configuration ---------------------------------------------------------------------

    async def reload(self) -> str:
        """Read the configuration again and change over to it; why that cannot be, or the empty string.

        What is configured as before goes on undisturbed. A bad configuration changes nothing.
        """
        if self._reread is None:
            return "this agent has no configuration to read again"
        async with self._reloading:
            self._notifier.reloading()
            try:
                config = await asyncio.to_thread(self._reread)
                await self._change_over(config)
            except ScitagsError as error:
                log.error("the new configuration is refused, and the old one stays: %s", error)
                return str(error)
            finally:
                self._notifier.ready()
            log.info("the configuration has been read again")
            return ""

    async def _reload_by_signal(self) -> None:
        await self.reload()

    async def _change_over(self, config: Config) -> None:
        """Stop what is no longer wanted or is to be another, start what is new. ConfigError before anything is done."""
        sources = {one.name: one for one in config.sources}
        backends = {one.name: (one, options) for one, options in config.backends}
        new_sources = {n: one.create() for n, one in sources.items() if not _same(self._sources.get(n), one)}
        new_enrichers = [(one, one.create()) for one in config.enrichers if not self._enrichment.runs(one)]
        new_backends = {n: both[0].create() for n, both in backends.items() if self._backends.get(n) != both}
        if config.agent.state_directory != self._config.agent.state_directory:
            log.warning("state_directory is read at start only: it stays as it is")
        old_backends = dict(self._backends)
        if config.log != self._config.log:
            set_up_log(config.log)
        self._config = config
        self._absent.clear()
        await self.lookout.configure(config)
        self.table.configure(
            max_users=config.table.max_transfers,
            idle=timedelta(seconds=config.table.idle_seconds),
            reorder=timedelta(seconds=config.table.reorder_seconds),
        )
        await self._stop_sources([name for name in self._sources if name not in sources or name in new_sources])
        await self._enrichment.change_over(config.enrichers, new_enrichers)
        for name in [name for name in self._backends if name not in backends or name in new_backends]:
            del self._backends[name]
            await self.fanout.remove(name, config.agent.shutdown_seconds)
        for name, backend in new_backends.items():
            try:
                await self._start_backend(*backends[name], backend, ())
            except ConfigError as error:
                log.error("%s", error)
                if name in old_backends:
                    instance, options = old_backends[name]
                    await self._start_backend(instance, options, instance.create(), ())
        for name, source in new_sources.items():
            self._start_source(sources[name], source)

    # --- the parts -------------------------------------------------------------------------------

    async def _start_backend(
        self, instance: Instance, options: BackendOptions, backend: Any, again: Sequence[FlowChange]
    ) -> None:
        name = instance.name
        try:
            under_way = [change for key, _ in self.table.flows() for change in self.table.under_way(key)]
            if isinstance(backend, ShowsStatus):
                backend.show(self.status)
            await backend.start(self.inheritance_of(f"backend {name}", under_way))
        except asyncio.CancelledError:
            await backend.close()
            raise
        except Exception as error:
            await backend.close()
            if options.required:
                raise ConfigError(f"required backend {name} cannot start: {error}") from error
            self._absent.add(
                f"backend {name}", str(error), lambda: self._start_backend(instance, options, instance.create(), again)
            )
            return
        self._backends[name] = instance, options
        done = self._ledger.done(name, self.table.serial) if self._ledger is not None else None
        self.fanout.add(Lane(name, backend, options.queue, done), again)

    def _start_source(self, instance: Instance, source: Source) -> None:
        task = asyncio.create_task(self._keep_running(instance, source), name=f"source {instance.name}")
        self._sources[instance.name] = instance, task

    async def _stop_sources(self, names: Sequence[str]) -> None:
        tasks = [self._sources.pop(name)[1] for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_running(self, instance: Instance, source: Source) -> None:
        """Run a source, and again when it fails, after a pause that grows."""
        inlet = self._inlets.setdefault(instance.name, Inlet(instance.name, self))
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

    # --- what outlives us ------------------------------------------------------------------------

    def _inherit(self) -> list[FlowChange]:
        """Open the ledger and take in what an earlier agent wrote; the changes that backends may not have seen."""
        directory = self._config.ledger
        if directory is None:
            return []
        try:
            self._ledger = Ledger(directory)
        except ScitagsError as error:
            if self._config.agent.state_directory != AUTO:
                raise ConfigError(f"state_directory: {error}") from None
            log.warning("no ledger is kept, and a restart begins with nothing: %s", error)
            return []
        self.lookout.ledger = self._ledger
        snapshot, frames = self._ledger.load()
        self.table.restore(snapshot.flows, snapshot.serial)
        self._positions = dict(snapshot.positions)
        changes = list(snapshot.outstanding)
        for frame in frames:
            self._positions[frame.source] = frame.position
            changes += self.table.apply_all(frame.events, frame.now)
        if len(self.table):
            log.info("%d transfers are under way since before this agent", self.table.users)
        self.table.forget_totals()
        return changes

    def _begin_ledger(self) -> None:
        """Begin the ledger anew, with the state of now."""
        if self._ledger is None:
            return
        try:
            self._ledger.rotate(self.table.serial, list(self.table.flows()), self._positions, self.fanout.outstanding())
        except (OSError, *NOT_WRITABLE) as error:
            self._count_ledger_failure(error)
        else:
            if self._gap_until:
                log.info("the ledger is whole again")
            self._gap_until = 0.0

    def _write_down(self, ledger: Ledger, frame: Frame) -> None:
        try:
            ledger.append(frame)
        except (OSError, *NOT_WRITABLE) as error:
            self._count_ledger_failure(error)
        if frame.position:
            self._positions[frame.source] = frame.position

    def _count_ledger_failure(self, error: Exception) -> None:
        self.failures["ledger"] += 1
        self._gap_until = time.monotonic() + LEDGER_AGAIN_SECONDS
        if self.failures["ledger"] == 1:
            log.error("the ledger cannot be written: %s (said once, counted from here)", error)

    # --- chores ----------------------------------------------------------------------------------

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            # What libraries leave behind in circles, for each of their connections, would else pile up for long.
            gc.collect(0)
            if self._gap_until:
                self._begin_ledger()
            ends = self.table.silent(datetime.now(UTC))
            if ends:
                self.table.counters["expired"] += len(ends)
                self.accept(ends, OWN)

    async def _close_unclaimed(self) -> None:
        """Let go of what was held for sources that are no longer configured."""
        await asyncio.sleep(CLAIM_SECONDS)
        for name in list(self._kept):
            for descriptor in self._kept.pop(name):
                os.close(descriptor)
            self._notifier.let_go(name)

    async def _report(self) -> None:
        """Tell the backends of every transfer that goes on, evenly over the interval, with what enrichers know."""
        while True:
            interval = self._config.table.ongoing_seconds
            if not interval:
                await asyncio.sleep(EXPIRY_SECONDS)
                continue
            keys = [key for key, _ in self.table.flows()]
            began = time.monotonic()
            steps = max(1, min(len(keys), int(interval)))
            for step in range(steps):
                await asyncio.sleep(max(0.0, began + interval * (step + 1) / steps - time.monotonic()))
                for key in keys[step::steps]:
                    self._report_connection(key)

    def _report_connection(self, key: FlowKey) -> None:
        changes = self.table.under_way(key)
        if self._enrichment:
            enrich = self._enrichment.enrich
            changes = [msgspec.structs.replace(change, event=enrich(change.event)) for change in changes]
        if changes and not self.fanout.is_crowded:
            self.fanout.put(changes)

    async def _shut_down(self, chores: list[asyncio.Task[None]]) -> None:
        """Sources first, then what they brought is worked off, then the backends close."""
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await self._stop_sources(list(self._sources))
        await self.lookout.close()
        if not await self.fanout.drained(self._config.agent.shutdown_seconds):
            log.error("stopped with changes still queued: the deadline has passed")
        self._begin_ledger()
        outstanding = self.fanout.outstanding()
        await self.fanout.close()
        await self._enrichment.close()
        if self._ledger is not None:
            if self.table.users or outstanding or self._ledger.is_to_be_kept:
                self._ledger.close()
            else:
                self._ledger.remove()

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


def _mark_of(name: str, backend: TellsMarks, key: FlowKey) -> FlowMark | None:
    try:
        return backend.mark_of(key)
    except Exception:
        log.exception("backend %s does not tell how it marks %s", name, key)
        return None


def _same(running: tuple[Instance, Any] | None, wanted: Instance) -> bool:
    return running is not None and running[0] == wanted
