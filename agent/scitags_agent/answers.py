"""Where a request at the Unix socket is answered.

On a Unix socket that came along with it (SCM_RIGHTS, the last of the descriptors), which works whatever separates the
two: rights to files, mounts, network namespaces. Else on the connection, or to the address that the sender has bound.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any, Self


class AnswerWay:
    """Back to one sender. One who left, does not read or has no address costs us nothing."""

    def __init__(self, receiver: socket.socket, address: Any, descriptors: list[int]) -> None:
        """descriptors are those that came along; that of the way back, if there is one, is taken out."""
        self._receiver, self._address = receiver, address
        self._own = descriptors.pop() if descriptors and _is_unix(descriptors[-1]) else -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: bytes) -> None:
        """The answer."""
        with contextlib.suppress(OSError):
            if self._own >= 0:
                with _borrowed(self._own) as own:
                    own.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif self._receiver.type == socket.SOCK_SEQPACKET:
                self._receiver.send(message)
            elif self._address:
                self._receiver.sendto(message, self._address)

    def close(self) -> None:
        """To be called once, when there is nothing more to say."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


def _is_unix(descriptor: int) -> bool:
    try:
        with _borrowed(descriptor) as one:
            return one.family == socket.AF_UNIX
    except OSError:  # it is no socket
        return False


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    one = socket.socket(fileno=descriptor)
    try:
        yield one
    finally:
        one.detach()
