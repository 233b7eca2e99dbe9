"""`scitags fts completions`: what FTS says of finished transfers, as records in lines of JSON."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.errors import InvalidValue, shown
from scitags_fts.completions import CompletionError, CompletionReader
from scitags_fts.stomp_reader import TOPIC, Broker, StompReader, Subscription

PORT = 61613  # of STOMP (IANA)
REFUSALS_TOLD = 20


class Scribe:
    """Writes the records of messages, and returns when they are safe."""

    def __init__(self, reader: CompletionReader, file: BinaryIO, tell: Callable[[str], None]) -> None:
        self._reader = reader
        self._file = file
        self._tell = tell
        self._encoder = msgspec.json.Encoder()
        self.counters: Counter[str] = Counter()

    def write(self, messages: Sequence[bytes]) -> None:
        """One line for each message that is one. The others are counted and told, and do not come again. OSError."""
        lines = []
        for message in messages:
            try:
                lines.append(self._encoder.encode(self._reader.read(message)))
            except CompletionError as error:
                self.counters["refused"] += 1
                if self.counters["refused"] <= REFUSALS_TOLD:
                    self._tell(f"refused: {error}")
        if lines:
            self._file.write(b"\n".join(lines) + b"\n")
            self._file.flush()
            if self._file.seekable():
                os.fsync(self._file.fileno())
            self.counters["written"] += len(lines)


def run(arguments: argparse.Namespace) -> int:
    """Read until a signal, or until --count messages were taken."""
    registry = names.choose(arguments).registry
    password = arguments.password_file.read_text().strip() if arguments.password_file else ""
    host, port = _host_and_port(arguments.broker)
    broker = Broker(
        host, port, arguments.user, password, arguments.tls, arguments.cert, arguments.key, arguments.cafile
    )
    with open(arguments.output, "ab") if arguments.output else sys.stdout.buffer as file:  # noqa: PTH123
        scribe = Scribe(CompletionReader(registry), file, _tell)
        reader = StompReader(broker, Subscription(arguments.destination, arguments.name), scribe.write)
        before = {one: signal.signal(one, lambda *_: reader.stop()) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            reader.run(arguments.count)
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
    counters: dict[str, Any] = {**reader.counters, **scribe.counters}
    _tell(json_line(counters))
    return 0


def _tell(text: str) -> None:
    print(f"scitags: {text}", file=sys.stderr)


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = text, str(PORT)
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidValue(f"broker {shown(text)} is not HOST or HOST:PORT")
    return host, int(port)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags fts completions`."""
    parser.add_argument("--broker", required=True, metavar="HOST[:PORT]", help=f"port {PORT} unless given")
    parser.add_argument("--destination", default=TOPIC, help=f"default: {TOPIC}")
    parser.add_argument(
        "--name", required=True, help="of the durable subscription: the same each time, and nobody else's"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="add to it; default: standard output")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many messages")
    parser.add_argument("--user", default="")
    parser.add_argument("--password-file", type=Path, metavar="FILE")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--cert", metavar="FILE", help="TLS, with this certificate of ours")
    parser.add_argument("--key", metavar="FILE")
    parser.add_argument("--cafile", metavar="FILE", help="TLS, with a broker that these have certified")
    names.add_options(parser)
