"""Prometheus: flows, octets, round-trip times and retransmissions by experiment and activity, and the agent's health.

A scraper gets a page that is at most FRESH_SECONDS old, made in a thread. One that sends nothing, or takes nothing,
has its connection cut; one that comes too often gets the same page again; beyond MAX_CONNECTIONS at a time none is
listened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from scitags_agent import reported
from scitags_agent.reported import ReportedFile
from scitags_agent.tally import Tally
from scitags_core import settings as core_settings
from scitags_core.errors import ConfigError, shown
from scitags_core.flow import PORT_MAX, FlowChange, canonical_address
from scitags_core.roles import BackendKind, Inheritance

if TYPE_CHECKING:
    from scitags_agent.exposition import Page

log = logging.getLogger(__name__)

PATH = "/metrics"
REPORTED = "reported"
FRESH_SECONDS = 0.5
REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 10.0
CLOSE_SECONDS = 1.0
MAX_CONNECTIONS = 16
MAX_HEAD_OCTETS = 1 << 13
SEND_BUFFER_OCTETS = 1 << 17
FLOW_SERIES_MAX = 10_000

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


class PrometheusSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the metrics are to be had.

    address       an IP address of this host; loopback unless set
    port          0 is any that is free, as the log then says
    flow_series   connections that have series of their own, at most; 0 for none. Every connection that ever was
                  stays in Prometheus' database for as long as that keeps anything
    """

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=PORT_MAX)] = 9514
    flow_series: Annotated[int, msgspec.Meta(ge=0, le=FLOW_SERIES_MAX)] = 0


class PrometheusBackend:
    """The backend. Make it with create, which says when the library is missing."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self._settings = settings
        self._counters: Counter[str] = Counter(scrapes=0, scrapes_cut=0, requests_refused=0)
        self._status: Callable[[], Mapping[str, Any]] = dict
        self._tally: Tally | None = None
        self._reported: ReportedFile | None = None
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        # Of its own: a name that does not resolve keeps the loop's threads busy.
        self._renderer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
        self._pages: dict[str, tuple[float, Page]] = {}
        self._rendering = asyncio.Lock()
        self.port = 0

    def show(self, status: Callable[[], Mapping[str, Any]]) -> None:
        """Show the agent's status, too: what it returns when a page is made."""
        self._status = status

    async def start(self, inheritance: Inheritance) -> None:
        own = core_settings.load()
        registry = own.registry.client().load().registry
        self._tally = Tally(registry, max_series=self._settings.flow_series)
        earlier = reported.load(inheritance.directory / REPORTED) if inheritance.directory is not None else {}
        for change in inheritance.under_way:
            event = change.event
            self._tally.adopt(change, earlier.get((event.key, event.transfer_id, event.start_time)))
        if inheritance.directory is not None:
            self._reported = ReportedFile(inheritance.directory / REPORTED, self._tally.reported)
        family = socket.AF_INET6 if ":" in self._settings.address else socket.AF_INET
        self._server = await asyncio.start_server(
            self._serve, self._settings.address, self._settings.port, family=family, limit=MAX_HEAD_OCTETS
        )
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("metrics for Prometheus at %s port %d, %s", self._settings.address, self.port, PATH)

    async def handle(self, changes: Sequence[FlowChange]) -> None:
        assert self._tally is not None
        for change in changes:
            self._tally.add(change)
        self._keep_reported(changes)

    def _keep_reported(self, changes: Sequence[FlowChange]) -> None:
        """Write down what transfers have reported with these changes, for the next agent."""
        assert self._tally is not None
        events = (change.event for change in changes)
        names = [
            (event.key, event.transfer_id, event.start_time)
            for event in events
            if event.usage is not None or event.extra
        ]
        if not names or self._reported is None:
            return
        try:
            self._reported.add(list(self._tally.reported(names)))
        except OSError as error:
            self._counters["reports_not_kept"] += 1
            if self._counters["reports_not_kept"] == 1:
                log.error("what transfers have reported cannot be kept: %s (said once, counted from here)", error)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        tasks = [task for task in self._open.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        self._renderer.shutdown(wait=False, cancel_futures=True)
        if self._reported is not None:
            self._reported.close()

    def counters(self) -> Mapping[str, int]:
        return self._counters

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, and the connection is closed."""
        self._open[writer] = asyncio.current_task()
        try:
            if len(self._open) > MAX_CONNECTIONS:
                self._counters["requests_refused"] += 1
                return
            # What a scraper does not take waits in the kernel, but not all of a long page.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_OCTETS)
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            status, accept, with_content = _understood(head)
            if status != 200:  # noqa: PLR2004
                self._counters["requests_refused"] += 1
                await _answer(writer, status)
                return
            await _answer(writer, 200, await self._page(accept), with_content=with_content)
            self._counters["scrapes"] += 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self._counters["scrapes_cut"] += 1
        finally:
            del self._open[writer]
            writer.transport.abort()

    async def _page(self, accept: str) -> Page:
        from scitags_agent import exposition  # noqa: PLC0415

        assert self._tally is not None
        # One at a time: a crowd of scrapers takes one thread, and most of them the page of the one before.
        async with self._rendering:
            now = time.monotonic()
            self._pages = {key: kept for key, kept in self._pages.items() if now - kept[0] < FRESH_SECONDS}
            if accept not in self._pages:
                status: Mapping[str, Any] = {}
                with contextlib.suppress(
                    Exception
                ):  # a plug-in's counters may fail in any way; the flows are still good
                    status = self._status()
                make = partial(exposition.page, self._tally.snapshot(), status, accept)
                made = await asyncio.get_running_loop().run_in_executor(self._renderer, make)
                self._pages[accept] = (now, made)
            return self._pages[accept][1]


def _understood(head: bytes) -> tuple[int, str, bool]:
    """Of a request: the status that it deserves, its Accept header, and whether it wants content."""
    first, *fields = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.partition(" ")
    accept = ",".join(
        value.strip() for name, _, value in (f.partition(":") for f in fields) if name.lower() == "accept"
    )
    if not version.startswith("HTTP/1."):
        return 400, "", True
    if target.partition("?")[0] != PATH:
        return 404, "", True
    if method not in ("GET", "HEAD"):
        return 405, "", True
    return 200, accept, method == "GET"


async def _answer(
    writer: asyncio.StreamWriter, status: int, page: Page | None = None, *, with_content: bool = True
) -> None:
    """Send an answer whole, or raise TimeoutError: nobody may hold a page for longer."""
    content = page.content if page else f"{_REASONS[status]}. Metrics are at {PATH}\n".encode()
    content_type = page.content_type if page else "text/plain; charset=utf-8"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    # Without a high-water mark, drain() returns when all has been handed to the kernel.
    writer.transport.set_write_buffer_limits(high=0)
    writer.write(head.encode("latin-1") + (content if with_content else b""))
    async with asyncio.timeout(ANSWER_SECONDS):
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def create(settings: PrometheusSettings) -> PrometheusBackend:
    """The backend. Raises ConfigError for a bad address, and where prometheus_client is not installed."""
    try:
        canonical_address(settings.address)
    except ValueError:
        raise ConfigError(f"address {shown(settings.address)} is not an IP address") from None
    try:
        from scitags_agent import exposition  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'scitags-suite[prometheus]'") from None
    return PrometheusBackend(settings)


KIND = BackendKind("prometheus", PrometheusSettings, create)
