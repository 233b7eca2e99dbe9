"""ASGI middleware (ASGI 3, HTTP): the agent is told of tagged requests as they begin and end.

    application = TellsAgentASGI(application)

A request begins when the server hands it over, and ends with the last part of its answer, or when the application
returns, fails or is cancelled: a client that disconnects makes it do one of these. Nothing waits for the agent, unless
that is asked for.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from scitags_http.agent_link import AGENT_SOCKET, ANSWER_OCTETS
from scitags_http.teller import APPLICATION, Teller
from scitags_http.transfer import FORWARDED, Endpoint, Transfer, is_data, tag_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# By extensions of these names the server itself reads the content, and nobody here sees how much.
_UNCOUNTED = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class TellsAgentASGI:
    """Wraps an application.

    agent is the path of the agent's socket, application the name that fireflies bear. With wait_seconds a tagged
    request waits so long at most until its packets are marked; without, it does not wait.
    """

    def __init__(
        self,
        app: Application,
        *,
        agent: str | os.PathLike[str] = AGENT_SOCKET,
        application: str = APPLICATION,
        wait_seconds: float = 0.0,
    ) -> None:
        self._app = app
        self.teller = Teller(agent, application, wait_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transfer = self._begun(scope) if scope["type"] == "http" and is_data(scope["method"]) else None
        if transfer is None:
            await self._app(scope, receive, send)
            return
        answer = self.teller.start(transfer)
        under_way = _UnderWay(transfer, self.teller, receive, send)
        try:
            if answer is not None:
                await self._wait_for(answer)
            await self._app(scope, under_way.receive, under_way.send)
        finally:
            under_way.finish()

    async def _wait_for(self, answer: socket.socket) -> None:
        with answer:
            try:
                async with asyncio.timeout(self.teller.wait_seconds):
                    await asyncio.get_running_loop().sock_recv(answer, ANSWER_OCTETS)
            except (OSError, RuntimeError):  # TimeoutError among them; or another event loop than asyncio's
                self.teller.link.leave_alone()

    def _begun(self, scope: Scope) -> Transfer | None:
        try:
            headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
            tag = tag_of(headers, scope.get("query_string", b"").decode("latin-1"))
            if tag is None:
                return None
            if any(name in FORWARDED for name, _ in headers):
                self.teller.leave("proxied", "it came through a proxy, which alone knows the client's connection")
                return None
            protocol = "udp" if scope.get("http_version") == "3" else "tcp"
            ends = _endpoint(scope.get("server")), _endpoint(scope.get("client"))
            return self.teller.begin(scope["method"], tag, *ends, protocol)
        except Exception as error:  # no request fails for want of a tag
            self.teller.leave("failed", f"{type(error).__name__}: {error}")
            return None


class _UnderWay:
    """Counts what passes between the server and the application."""

    def __init__(self, transfer: Transfer, teller: Teller, receive: Receive, send: Send) -> None:
        self._transfer = transfer
        self._teller = teller
        self._receive = receive
        self._send = send
        self._is_over = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and self._transfer.received is not None:
            self._transfer.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        kind = message["type"]
        if kind == "http.response.body" and self._transfer.sent is not None:
            self._transfer.sent += len(message.get("body", b""))
        elif kind in _UNCOUNTED:
            self._transfer.sent = None
        is_body = kind == "http.response.body" or kind in _UNCOUNTED
        if is_body and not message.get("more_body", False):
            # What the application does afterwards (background tasks) is no transfer.
            self.finish()

    def finish(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._teller.finish(self._transfer)


def _endpoint(pair: Any) -> Endpoint | None:
    """None for what is no host and port, such as the path of a Unix socket."""
    host, port = pair or ("", None)
    return Endpoint(host, port) if isinstance(port, int) else None
