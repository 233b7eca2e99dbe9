"""HTTP: flowd-go's routes for those who speak them, and an API of our own.

    POST   /flow                 flowd-go's body; GET /dummy/start and /dummy/end, for a try
    POST   /v1/flows             our JSON (scitags_core.flow_json), one event or an array of them
    DELETE /v1/flows             the same without "state": these transfers have ended
    GET    /v1/flows             the table: ?from=0&limit=1000
    GET    /v1/status, /v1/health, /v1/ready, /v1/version
    POST   /v1/reload
    GET    /openapi.json

Loopback, or a Unix socket, is for whoever is on the host; any other address asks for a bearer token.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from scitags_agent.http_api import document
from scitags_agent.local_path import OwnSocket, admit, group_id, parse_mode
from scitags_core import __version__
from scitags_core.errors import ConfigError, FlowEventError, InvalidValue, shown
from scitags_core.flow import PORT_MAX, FlowEvent, FlowKey, FlowState, check_tag
from scitags_core.flow_json import events_of, json_of
from scitags_core.instant import parse_instant
from scitags_core.roles import EventSink, SourceKind

try:
    from aiohttp import web

    from scitags_agent.http_guard import Guard, problem
except ImportError:
    raise ImportError("it needs aiohttp: pip install 'scitags-suite[http]'") from None

log = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
FLOWS_AT_ONCE = 1000
_GO_STATES = {2: FlowState.START, 3: FlowState.END, 4: FlowState.ONGOING}
_GO_PROTOCOLS = {0: "tcp", 1: "udp", 6: "tcp", 17: "udp"}
_DUMMY = FlowKey.of("::1", 2345, "::1", 5777)


class HttpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the API is, and for whom.

    address, port     loopback by default; any other address needs token_file
    socket            the path of a Unix socket, in place of address and port; mode (octal) and group are its own
    token_file        holds the bearer token
    max_octets        of a request's body
    max_connections   at once; beyond, the one that has been silent for longest is closed
    """

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=PORT_MAX)] = 7777
    socket: str = ""
    mode: str = "0660"
    group: str = ""
    token_file: str = ""
    max_octets: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 256


class HttpSource:
    """The source. One instance for each address."""

    def __init__(self, settings: HttpSettings) -> None:
        """Raises ConfigError."""
        self._settings = settings
        self._mode = parse_mode(settings.mode)
        self._group = group_id(settings.group)
        self._token = _token(settings.token_file)
        self._path = Path(settings.socket) if settings.socket else None
        if self._path is None and not self._token and not _is_loopback(settings.address):
            raise ConfigError(f"address {shown(settings.address)} is not loopback: it needs a token_file")

    async def run(self, sink: EventSink) -> None:
        """Serve until cancelled. Raises OSError when the address cannot be had."""
        guard = Guard(self._token, sink)
        application = web.Application(client_max_size=self._settings.max_octets, middlewares=[guard.middleware])
        api = Api(sink)
        application.add_routes(api.routes())
        runner = web.AppRunner(application, access_log=None, keepalive_timeout=IDLE_SECONDS, logger=guard.logger)
        await runner.setup()
        server: asyncio.Server | None = None
        file: OwnSocket | None = None
        try:
            gate = Gate(runner.server, self._settings.max_connections)
            loop = asyncio.get_running_loop()
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.unlink(missing_ok=True)
                server = await loop.create_unix_server(gate, os.fspath(self._path))
                admit(self._path, self._mode, self._group)
                file = OwnSocket(self._path)
                await file.watch()
            else:
                server = await loop.create_server(gate, self._settings.address, self._settings.port)
                await loop.create_future()
        finally:
            if server is not None:
                server.close()
            await runner.cleanup()
            if file is not None:
                file.remove()


class Api:
    """The routes."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def routes(self) -> list[web.RouteDef]:
        """Every route."""
        return [
            web.get("/", self._index),
            web.post("/flow", self._go_flow),
            web.get("/dummy/{state:start|end}", self._dummy),
            web.get("/v1/flows", self._list),
            web.post("/v1/flows", self._post),
            web.delete("/v1/flows", self._delete),
            web.get("/v1/status", self._status),
            web.get("/v1/health", self._health),
            web.get("/v1/ready", self._ready),
            web.get("/v1/version", self._version),
            web.post("/v1/reload", self._reload),
            web.get("/openapi.json", self._document),
        ]

    async def _index(self, _: web.Request) -> web.Response:
        return answer({"routes": [f"{route.method} {route.path}" for route in self.routes()]})

    async def _go_flow(self, request: web.Request) -> web.Response:
        try:
            event = go_event(json_of(await request.read()))
        except FlowEventError as error:
            self._sink.refuse(str(error))
            return problem(400, str(error))
        self._sink.accept(event)
        await self._sink.settled()
        return answer({"accepted": 1, "refused": []})

    async def _dummy(self, request: web.Request) -> web.Response:
        state = FlowState.START if request.match_info["state"] == "start" else FlowState.END
        self._sink.accept(FlowEvent(state=state, key=_DUMMY, tag=check_tag(1, 1)))
        return answer({"accepted": 1, "refused": []})

    async def _post(self, request: web.Request) -> web.Response:
        return await self._take(await request.read(), lambda content: content)

    async def _delete(self, request: web.Request) -> web.Response:
        def as_end(content: Any) -> Any:
            items = content if isinstance(content, list) else [content]
            return [{**one, "state": "end"} if isinstance(one, dict) else one for one in items]

        return await self._take(await request.read(), as_end)

    async def _take(self, body: bytes, made: Callable[[Any], Any]) -> web.Response:
        try:
            content = json_of(body)
        except FlowEventError as error:
            self._sink.refuse(str(error))
            return problem(400, str(error))
        events, refused = events_of(made(content))
        if events:
            self._sink.accept_many(events)
        for reason in refused:
            self._sink.refuse(reason)
        await self._sink.settled()
        return answer({"accepted": len(events), "refused": refused}, status=200 if events or not refused else 400)

    async def _list(self, request: web.Request) -> web.Response:
        numbers = []
        for name, default in (("from", 0), ("limit", FLOWS_AT_ONCE)):
            text = request.query.get(name, str(default))
            if not (text.isascii() and text.isdigit()):
                self._sink.refuse(f"{name} {shown(text)} is not a number")
                return problem(400, f"{name} {shown(text)} is not a number")
            numbers.append(int(text[:12]))
        first, limit = numbers
        total = self._sink.status()["table"]["transfers"]
        return answer({"total": total, "flows": self._sink.flows(first, min(limit, FLOWS_AT_ONCE))})

    async def _status(self, _: web.Request) -> web.Response:
        return answer(self._sink.status())

    async def _health(self, _: web.Request) -> web.Response:
        return answer({"healthy": True})

    async def _ready(self, _: web.Request) -> web.Response:
        ready = bool(self._sink.status().get("backends"))
        return answer({"ready": ready}, status=200 if ready else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return answer({"name": "scitags-agent", "version": __version__})

    async def _reload(self, _: web.Request) -> web.Response:
        trouble = await self._sink.reload()
        return problem(409, trouble) if trouble else answer({"reloaded": True})

    async def _document(self, _: web.Request) -> web.Response:
        return answer(document())


class Gate:
    """Makes the protocol of each connection, and closes one when there are too many."""

    def __init__(self, server: Any, limit: int) -> None:
        self._server = server
        self._limit = limit
        self._connections: OrderedDict[Guest, None] = OrderedDict()  # the longest silent first

    def __call__(self) -> asyncio.Protocol:
        return Guest(self._server(), self)

    def admit(self, guest: Guest) -> None:
        """Count a connection that has come."""
        self._connections[guest] = None
        if len(self._connections) > self._limit:
            next(iter(self._connections)).leave()

    def heard(self, guest: Guest) -> None:
        """Note that a connection has said something."""
        if guest in self._connections:
            self._connections.move_to_end(guest)

    def gone(self, guest: Guest) -> None:
        """Count a connection no more."""
        self._connections.pop(guest, None)


class Guest(asyncio.Protocol):
    """One connection: all is passed on to the library's protocol, but for silence that lasts too long."""

    def __init__(self, inner: asyncio.Protocol, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._gate.admit(self)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._gate.heard(self)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._gate.gone(self)
        self._inner.connection_lost(exc)

    def leave(self) -> None:
        """Close the connection at once: one that does not read would never let its answer go."""
        self._gate.gone(self)
        if self._transport is not None:
            self._transport.abort()

    def _wait(self) -> None:
        # From the start, not from the last octet: who sends one now and then is no better than who sends none.
        self._deadline = asyncio.get_running_loop().call_later(4 * IDLE_SECONDS, self.leave)


def go_event(content: Any) -> FlowEvent:
    """The event in flowd-go's JSON. FlowEventError names what is wrong."""
    if not isinstance(content, dict):
        raise FlowEventError(f"{shown(content)} is not an object")
    number = content.get("State")
    state = _GO_STATES.get(number) if isinstance(number, int) else None
    if state is None:
        raise FlowEventError(f"State {shown(number)} is none of 2 (start), 3 (end) and 4 (ongoing)")
    protocol = content.get("Protocol", 0)
    if not isinstance(protocol, int) or protocol not in _GO_PROTOCOLS:
        raise FlowEventError(f"Protocol {shown(protocol)} is neither 0 (TCP) nor 1 (UDP)")
    (src, src_port), (dst, dst_port) = _go_end(content, "Src"), _go_end(content, "Dst")
    application = content.get("Application", "")
    return FlowEvent(
        state=state,
        key=FlowKey.of(src, src_port, dst, dst_port, _GO_PROTOCOLS[protocol]),
        tag=check_tag(content.get("Experiment"), content.get("Activity")),
        start_time=_go_instant(content, "StartTs"),
        end_time=_go_instant(content, "EndTs"),
        application=application if isinstance(application, str) else "",
    )


def _go_end(content: dict[str, Any], name: str) -> tuple[str, int]:
    """An address and port, as "[::1]:2345", or as the object that Go's net.IP and port make."""
    value = content.get(name)
    if isinstance(value, dict):
        value = f"[{value.get('IP')}]:{value.get('Port')}"
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not (port.isascii() and port.isdigit()):
        raise FlowEventError(f"{name} {shown(content.get(name))} is no [address]:port")
    return host, int(port[:6])


def _go_instant(content: dict[str, Any], name: str) -> datetime | None:
    value = content.get(name)
    if not isinstance(value, str) or not value or value.startswith("0001-01-01"):  # Go's zero time
        return None
    try:
        return parse_instant(value).astimezone(UTC)
    except InvalidValue as error:
        raise FlowEventError(f"{name} {error}") from None


def answer(content: Any, *, status: int = 200) -> web.Response:
    """JSON."""
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")


def _token(path: str) -> bytes:
    if not path:
        return b""
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"token_file {shown(path)}: {error.strerror}") from None
    if not token:
        raise ConfigError(f"token_file {shown(path)} is empty")
    return token


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


KIND = SourceKind("http", HttpSettings, HttpSource)
