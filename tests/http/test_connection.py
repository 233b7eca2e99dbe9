"""Which connection a WSGI request came by, where the server gives a peer alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from scitags_http.connection import ends_of
from scitags_http.transfer import Endpoint


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end, and ours."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname()))
        yield client, stack.enter_context(server.accept()[0])


def test_looking_for_it_leaves_every_socket_as_it_is(
    connected: tuple[socket.socket, socket.socket],
) -> None:
    """Also where Python would make them sockets that do not block: others (a database's library) count on theirs."""
    client, ours = connected
    theirs, server = client.getsockname(), ours.getsockname()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5.0)
    try:
        found = ends_of({"REMOTE_ADDR": theirs[0], "REMOTE_PORT": str(theirs[1])})
        nobody = ends_of({"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "1"})
    finally:
        socket.setdefaulttimeout(before)
    assert found == (Endpoint(*server), Endpoint(*theirs))
    assert nobody is None
    assert [os.get_blocking(one.fileno()) for one in connected] == [True, True]
