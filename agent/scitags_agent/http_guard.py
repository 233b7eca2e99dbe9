"""Between the HTTP source and its clients: the token, and an answer and a count for whatever is no good request."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from scitags_core.errors import shown
from scitags_core.roles import EventSink

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_OPEN_TO_ALL = frozenset({"/v1/health", "/v1/ready", "/openapi.json"})
_LEFT = "the client left before its request was whole"


class Guard:
    """One source's."""

    def __init__(self, token: bytes, sink: EventSink) -> None:
        """Without a token, whoever can connect may ask."""
        self._token = token
        self._sink = sink
        # The library would log a traceback for each request that is none, which a stranger may send by the million.
        self.logger = logging.Logger(__name__, logging.DEBUG)  # noqa: LOG001  (of this source alone)
        self.logger.addHandler(_Refusals(sink))

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Ask for the token, and answer in JSON whatever goes wrong."""
        if self._token and request.path not in _OPEN_TO_ALL:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
                self._sink.refuse("a bearer token is needed")
                return problem(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        try:
            return await handler(request)
        except web.HTTPException as error:
            self._sink.refuse(f"{request.method} {shown(request.path)}: {error.status} {error.reason}")
            return problem(error.status, error.reason or "", {k: v for k, v in error.headers.items() if k == "Allow"})
        except web.RequestPayloadError as error:
            self._sink.refuse(_reason(str(error)))
            return problem(400, _reason(str(error)))
        except ConnectionError:
            self._sink.refuse(_LEFT)
            return problem(400, _LEFT)  # to nobody


class _Refusals(logging.Handler):
    """Takes what the library logs of requests that it could not even hand on."""

    def __init__(self, sink: EventSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._sink.refuse(_reason(error.message))
        elif isinstance(error, web.RequestPayloadError):
            pass  # counted where the body was asked for
        elif isinstance(error, ConnectionError | asyncio.CancelledError):
            self._sink.refuse(_LEFT)
        elif record.levelno > logging.DEBUG:
            log.handle(record)


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """What went wrong, as RFC 9457 has it."""
    body = json.dumps({"status": status, "detail": detail}).encode()
    return web.Response(body=body, status=status, content_type="application/problem+json", headers=headers)


def _reason(message: str) -> str:
    # The library shows the place in a paragraph of its own, with blanks and a caret under it.
    what, _, rest = message.partition("\n\n")
    place = rest.strip().partition("\n")[0]
    return f"no HTTP: {' '.join(what.split())} {place[:120]}".strip()
