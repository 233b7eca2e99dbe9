"""WSGI middleware (PEP 3333): the agent is told of tagged requests as they begin and end.

    application = TellsAgentWSGI(application)

A request begins when the server hands it over, and ends when the server closes what the application returned, which it
does also when the client has gone. Nothing waits for the agent, unless that is asked for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from scitags_http.agent_link import AGENT_SOCKET, ANSWER_OCTETS
from scitags_http.connection import ends_of
from scitags_http.teller import APPLICATION, Teller
from scitags_http.transfer import FORWARDED, Transfer, is_data, tag_of

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], Any]]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

_HEADER = "HTTP_"


class TellsAgentWSGI:
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        transfer = self._begun(environ) if is_data(environ["REQUEST_METHOD"]) else None
        if transfer is None:
            return self._app(environ, start_response)
        if transfer.is_upload:
            environ["wsgi.input"] = _CountingInput(environ["wsgi.input"], transfer)
        answered = self.teller.start(transfer)
        if answered is not None:
            self._wait_for(answered)
        try:
            answer = self._app(environ, _counting(start_response, transfer))
        except BaseException:
            self.teller.finish(transfer)
            raise
        return self._watched(answer, transfer, environ.get("wsgi.file_wrapper"))

    def _wait_for(self, answered: socket.socket) -> None:
        with answered:
            try:
                answered.settimeout(self.teller.wait_seconds)
                answered.recv(ANSWER_OCTETS)
            except OSError:
                self.teller.link.leave_alone()

    def _begun(self, environ: Environ) -> Transfer | None:
        try:
            headers = {
                name[len(_HEADER) :].replace("_", "-").lower(): value
                for name, value in environ.items()
                if name.startswith(_HEADER)
            }
            tag = tag_of(headers.items(), environ.get("QUERY_STRING", ""))
            if tag is None:
                return None
            if not FORWARDED.isdisjoint(headers):
                self.teller.leave("proxied", "it came through a proxy, which alone knows the client's connection")
                return None
            ours, theirs = ends_of(environ) or (None, None)
            return self.teller.begin(environ["REQUEST_METHOD"], tag, ours, theirs)
        except Exception as error:  # no request fails for want of a tag
            self.teller.leave("failed", f"{type(error).__name__}: {error}")
            return None

    def _watched(self, answer: Iterable[bytes], transfer: Transfer, file_wrapper: Any) -> Iterable[bytes]:
        close = getattr(answer, "close", None)

        def finish() -> None:
            try:
                if close is not None:
                    close()
            finally:
                self.teller.finish(transfer)

        # The server's own wrapper is sent by the kernel, as long as it is nothing else: it stays what it is.
        if isinstance(file_wrapper, type) and isinstance(answer, file_wrapper):
            try:
                answer.close = finish  # type: ignore[attr-defined]
            except AttributeError:
                pass
            else:
                transfer.sent = None
                return answer
        kind = _SizedAnswer if hasattr(answer, "__len__") else _CountingAnswer
        return kind(answer, transfer, finish)


def _counting(start_response: StartResponse, transfer: Transfer) -> StartResponse:
    def ours(*arguments: Any, **options: Any) -> Callable[[bytes], Any]:
        write = start_response(*arguments, **options)

        def counting_write(part: bytes) -> Any:
            transfer.sent = (transfer.sent or 0) + len(part)
            return write(part)

        return counting_write

    return ours


class _CountingAnswer:
    """What an application returned, counted as the server takes it."""

    def __init__(self, answer: Iterable[bytes], transfer: Transfer, finish: Callable[[], None]) -> None:
        self._answer = answer
        self._parts: Iterator[bytes] | None = None
        self._transfer = transfer
        self._finish: Callable[[], None] | None = finish

    def __iter__(self) -> _CountingAnswer:
        self._parts = iter(self._answer)
        return self

    def __next__(self) -> bytes:
        if self._parts is None:
            self._parts = iter(self._answer)
        part = next(self._parts)
        self._transfer.sent = (self._transfer.sent or 0) + len(part)
        return part

    def close(self) -> None:
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()


class _SizedAnswer(_CountingAnswer):
    """One whose number of parts is known: servers that see a single part tell the client its length."""

    def __len__(self) -> int:
        return len(self._answer)  # type: ignore[arg-type]


class _CountingInput:
    """The request's body, counted as the application reads it. All else is the server's own."""

    def __init__(self, body: Any, transfer: Transfer) -> None:
        self._body = body
        self._transfer = transfer

    def _counted(self, part: bytes) -> bytes:
        self._transfer.received = (self._transfer.received or 0) + len(part)
        return part

    def read(self, *size: int) -> bytes:
        return self._counted(self._body.read(*size))

    def readline(self, *size: int) -> bytes:
        return self._counted(self._body.readline(*size))

    def readlines(self, *hint: int) -> list[bytes]:
        return [self._counted(line) for line in self._body.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        return (self._counted(line) for line in self._body)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)
