"""Takes messages from a durable subscription of a STOMP broker, and acknowledges what is written down.

The broker keeps what comes while nobody listens. A message is acknowledged when the record of it is in the file, whole
and flushed, and all up to it with one answer. What was written and not acknowledged comes again; it is known by its
message-id, and written once for as long as this process lives.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import ssl
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from scitags_core.errors import ScitagsError

log = logging.getLogger(__name__)

TOPIC = "/topic/transfer.fts_monitoring_complete"
PREFETCH = 2000  # that the broker sends ahead; what is held here at most
AT_ONCE = 1000
BATCH_SECONDS = 0.05
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 30.0
CONNECT_SECONDS = 10.0
HEARTBEAT_MILLISECONDS = 10_000
IDS_REMEMBERED = 200_000
_SUBSCRIBED = "subscribed"


class StompUnavailable(ScitagsError):
    """The library is missing, or the broker said no for good."""


class Broker(msgspec.Struct, frozen=True):
    """Where, and as whom. certificate, key and authorities are files; they mean TLS, as tls does."""

    host: str
    port: int
    user: str = ""
    password: str = ""
    tls: bool = False
    certificate: str | None = None
    key: str | None = None
    authorities: str | None = None

    @property
    def is_tls(self) -> bool:
        return bool(self.tls or self.certificate or self.authorities)


class Subscription(msgspec.Struct, frozen=True):
    """name is that of the durable subscription: it must be the same each time, and nobody else's."""

    destination: str = TOPIC
    name: str = "scitags"


_Message = tuple[int, str, str, bytes]  # generation of the connection, message-id, what to acknowledge, content


class StompReader:
    """Runs until stop(), or until so many messages were taken."""

    def __init__(self, broker: Broker, subscription: Subscription, write: Callable[[Sequence[bytes]], None]) -> None:
        """write is given contents of messages, and returns when all that is to be kept of them is safe; called in the
        thread of run(). What it raises ends run(), with nothing of it acknowledged.

        Raises StompUnavailable.
        """
        try:
            import stomp  # noqa: PLC0415
        except ImportError:
            raise StompUnavailable("the library is missing: pip install 'scitags-suite[stomp]'") from None
        self._stomp = stomp
        self._broker = broker
        self._subscription = subscription
        self._write = write
        self._queue: queue.Queue[_Message] = queue.Queue()
        self._generation = 0
        self._lost = threading.Event()
        self._subscribed = threading.Event()
        self._stopping = threading.Event()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.counters: Counter[str] = Counter()

    def stop(self) -> None:
        """End run() soon. From any thread, or a signal handler."""
        self._stopping.set()

    def run(self, count: int | None = None) -> None:
        """Take messages; count of them, if given. Comes back to a broker that goes away. Raises what write raises."""
        wait = FIRST_RETRY_SECONDS
        while not self._stopping.is_set() and (count is None or self.counters["taken"] < count):
            try:
                connection = self._connect()
            except (self._stomp.exception.StompException, OSError) as error:
                self.counters["failed_connections"] += 1
                log.warning(
                    "%s:%d: %s; tried again", self._broker.host, self._broker.port, error or type(error).__name__
                )
                self._stopping.wait(wait)
                wait = min(2 * wait, LAST_RETRY_SECONDS)
                continue
            wait = FIRST_RETRY_SECONDS
            try:
                self._take(connection, count)
            finally:
                with contextlib.suppress(Exception):  # it may have gone
                    connection.disconnect()

    def _connect(self) -> Any:
        broker, name = self._broker, self._subscription.name
        self._generation += 1
        self._lost.clear()
        connection = self._stomp.Connection12(
            [(broker.host, broker.port)],
            heartbeats=(HEARTBEAT_MILLISECONDS, HEARTBEAT_MILLISECONDS),
            reconnect_attempts_max=1,
            timeout=CONNECT_SECONDS,
            auto_decode=False,
        )
        if broker.is_tls:
            connection.set_ssl(
                [(broker.host, broker.port)],
                key_file=broker.key,
                cert_file=broker.certificate,
                ca_certs=broker.authorities,
                ssl_version=ssl.PROTOCOL_TLS_CLIENT,
            )
        connection.set_listener("scitags", _Listener(self, self._generation))
        connection.connect(broker.user or None, broker.password or None, wait=True, headers={"client-id": name})
        # The first two are ActiveMQ's words for it, the others RabbitMQ's.
        headers = {
            "activemq.subscriptionName": name,
            "activemq.prefetchSize": str(PREFETCH),
            "durable": "true",
            "auto-delete": "false",
            "prefetch-count": str(PREFETCH),
            "receipt": _SUBSCRIBED,
        }
        self._subscribed.clear()
        connection.subscribe(self._subscription.destination, id=name, ack="client", headers=headers)
        # From here on the broker keeps what comes.
        if not self._subscribed.wait(CONNECT_SECONDS):
            with contextlib.suppress(Exception):
                connection.disconnect()
            raise TimeoutError("the broker does not confirm the subscription")
        self.counters["connections"] += 1
        return connection

    def _take(self, connection: Any, count: int | None) -> None:
        """Until the connection is lost, or enough is taken."""
        while not self._stopping.is_set():
            left = None if count is None else count - self.counters["taken"]
            if left == 0:
                return
            batch = self._batch(AT_ONCE if left is None else min(left, AT_ONCE))
            if batch:
                self._keep(batch)
                try:
                    connection.ack(batch[-1][2])
                except (self._stomp.exception.StompException, OSError):
                    return  # all of it comes again
            elif self._lost.is_set():
                return

    def _batch(self, limit: int) -> list[_Message]:
        """What is there, of this connection, after a short wait for more."""
        batch: list[_Message] = []
        deadline = time.monotonic() + BATCH_SECONDS
        while len(batch) < limit:
            try:
                message = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if message[0] == self._generation:
                batch.append(message)
        return batch

    def _keep(self, batch: Sequence[_Message]) -> None:
        fresh = [(name, content) for _, name, _, content in batch if name not in self._seen]
        self.counters["repeated"] += len(batch) - len(fresh)
        if fresh:
            self._write([content for _, content in fresh])
        for name, _ in fresh:
            self._seen[name] = None
        while len(self._seen) > IDS_REMEMBERED:
            self._seen.popitem(last=False)
        self.counters["taken"] += len(fresh)

    def arrived(self, generation: int, headers: dict[str, str], content: bytes) -> None:
        """Called by the library's thread."""
        self._queue.put((generation, headers.get("message-id", ""), headers.get("ack", ""), content))

    def confirmed(self, generation: int) -> None:
        """Called by the library's thread."""
        if generation == self._generation:
            self._subscribed.set()

    def lost(self, generation: int) -> None:
        """Called by the library's thread."""
        if generation == self._generation:
            self._lost.set()


class _Listener:
    """What the library calls."""

    def __init__(self, reader: StompReader, generation: int) -> None:
        self._reader = reader
        self._generation = generation

    def on_message(self, frame: Any) -> None:
        body = frame.body if isinstance(frame.body, bytes) else frame.body.encode()
        self._reader.arrived(self._generation, frame.headers, body)

    def on_error(self, frame: Any) -> None:
        log.error("the broker says: %s", frame.headers.get("message") or frame.body)

    def on_receipt(self, frame: Any) -> None:
        if frame.headers.get("receipt-id") == _SUBSCRIBED:
            self._reader.confirmed(self._generation)

    def on_disconnected(self) -> None:
        self._reader.lost(self._generation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):  # of all else that it may tell, nothing is wanted
            return lambda *_: None
        raise AttributeError(name)
