"""Which connection a WSGI request came by. PEP 3333 names the peer at most, and the server by a name."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scitags_core.errors import FlowEventError
from scitags_core.flow import canonical_address
from scitags_http.transfer import Endpoint

_DESCRIPTORS = Path("/proc/self/fd")

Ends = tuple[Endpoint, Endpoint]  # ours, theirs


def ends_of(environ: Mapping[str, Any]) -> Ends | None:
    """Both ends of the request's connection, ours first; None where they cannot be known.

    gunicorn gives the socket. Elsewhere it is the one of this process whose peer is REMOTE_ADDR and REMOTE_PORT.
    """
    given = environ.get("gunicorn.socket")
    if given is not None:
        return _ends(given)
    try:
        peer = Endpoint(canonical_address(environ["REMOTE_ADDR"]), int(environ["REMOTE_PORT"]))
    except (KeyError, ValueError, FlowEventError):
        return None
    return _found(peer)


def _found(peer: Endpoint) -> Ends | None:
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208  (there may be thousands)
        try:
            one = _borrowed(int(name))
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            ends = _ends(one)
        finally:
            one.detach()
        if ends is not None and ends[1] == peer:
            return ends
    return None


def _borrowed(descriptor: int) -> socket.socket:
    """A socket of somebody else's, as it is. Raises OSError."""
    is_blocking = os.get_blocking(descriptor)
    one = socket.socket(fileno=descriptor)
    # With a default timeout (socket.setdefaulttimeout) Python makes it one that does not block.
    if os.get_blocking(descriptor) != is_blocking:
        os.set_blocking(descriptor, is_blocking)
    return one


def _ends(one: Any) -> Ends | None:
    try:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            return None
        ours, theirs = one.getsockname(), one.getpeername()
        return Endpoint(canonical_address(ours[0]), ours[1]), Endpoint(canonical_address(theirs[0]), theirs[1])
    except (OSError, FlowEventError):
        return None
