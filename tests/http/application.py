"""A data service in a few lines, as ASGI and as WSGI: GET /N gives N octets, PUT and POST take what is sent.

$SCITAGS_AGENT is the path of the agent's socket.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Iterator
from typing import Any

from scitags_http import TellsAgentASGI, TellsAgentWSGI

PART = 1 << 16
PART_SECONDS = 0.005
AGENT = os.environ["SCITAGS_AGENT"]


def parts(octets: int) -> Iterator[bytes]:
    while octets > 0:
        yield bytes(min(octets, PART))
        octets -= PART


def slowly(octets: int) -> Iterator[bytes]:
    """As one does who reads from a disk: what was reported meanwhile is in force by then."""
    for part in parts(octets):
        time.sleep(PART_SECONDS)
        yield part


async def serve_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    got = 0
    while scope["method"] in ("PUT", "POST"):
        message = await receive()
        got += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    path = scope["path"]
    if path == "/fails":
        raise ValueError("on purpose")
    length = str(got) if got else path[1:]
    octets = length.encode() if got else None
    total = len(octets) if octets else int(length)
    head = [(b"content-length", str(total).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    # As frameworks do: ASGI lets one go on sending to a client that has gone.
    gone = asyncio.ensure_future(disconnected(receive))
    for part in [octets] if octets else parts(total):
        if gone.done():
            return
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(PART_SECONDS)
    gone.cancel()
    await send({"type": "http.response.body", "body": b""})


async def disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def serve_wsgi(environ: Any, start_response: Any) -> Any:
    got = 0
    if environ["REQUEST_METHOD"] in ("PUT", "POST"):
        while part := environ["wsgi.input"].read(PART):
            got += len(part)
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise ValueError("on purpose")
    if path.startswith("/file/"):
        octets = int(path[6:])
        start_response("200 OK", [("Content-Length", str(octets))])
        return environ["wsgi.file_wrapper"](io.BytesIO(bytes(octets)))
    if got:
        text = str(got).encode()
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]
    start_response("200 OK", [("Content-Length", path[1:])])
    return slowly(int(path[1:]))


WAIT = float(os.environ.get("SCITAGS_WAIT", "0"))
asgi = TellsAgentASGI(serve_asgi, agent=AGENT, application="data service", wait_seconds=WAIT)
wsgi = TellsAgentWSGI(serve_wsgi, agent=AGENT, application="data service", wait_seconds=WAIT)
