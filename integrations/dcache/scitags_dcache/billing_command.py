"""`scitags dcache billing`: billing messages from Kafka, as flow events for the agent or in lines of JSON."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from scitags_core.cli import names
from scitags_core.cli.output import json_line
from scitags_core.errors import ConfigError, InvalidValue, shown
from scitags_core.flow import FlowEvent, FlowKey
from scitags_core.flow_json import encode_event
from scitags_dcache import vo_mapping
from scitags_dcache.billing import BillingError, BillingReader

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

TOPIC = "billing"
GROUP = "scitags"
POLL_SECONDS = 0.5
RETRY_SECONDS = 0.5
SEND_SECONDS = 5.0
COMMIT_MILLISECONDS = 1000
PROBLEMS_TOLD = 5  # of each kind
# Pools and the service billing can both send a message; they do so within seconds.
TRANSFERS_REMEMBERED = 1 << 14

Write = Callable[[list[FlowEvent]], None]


class KafkaUnavailable(ConfigError):
    """Kafka's client is not installed."""


class Consumption:
    """Takes messages from Kafka. What was handed over counts as read, within a second; one may come twice."""

    def __init__(self, settings: dict[str, str], topic: str, reader: BillingReader, write: Write) -> None:
        self._settings = settings
        self._topic = topic
        self._reader = reader
        self._write = write
        self._stopping = threading.Event()
        self._handed_over: OrderedDict[tuple[str, FlowKey, datetime | None], None] = OrderedDict()
        self.counters: Counter[str] = Counter(messages=0, transfers=0, skipped=0, refused=0)

    def stop(self) -> None:
        """End soon."""
        self._stopping.set()

    def run(self, count: int | None) -> None:
        """Until stop, or count messages. A broker that is away is waited for.

        Raises KafkaUnavailable, and ConfigError for settings that Kafka's client does not take.
        """
        try:
            from confluent_kafka import Consumer, KafkaException  # noqa: PLC0415
        except ImportError:
            raise KafkaUnavailable("confluent-kafka is missing: pip install 'scitags-suite[dcache]'") from None
        try:
            consumer = Consumer({**self._settings, "error_cb": self._note_problem})
            consumer.subscribe([self._topic])
        except KafkaException as error:
            raise ConfigError(f"Kafka: {error.args[0]}") from None
        try:
            while not self._stopping.is_set() and (count is None or self.counters["messages"] < count):
                message = consumer.poll(POLL_SECONDS)
                if message is None:
                    continue
                if (problem := message.error()) is not None:
                    self._note_problem(problem)
                    continue
                if self._take(message.value() or b""):
                    try:
                        consumer.store_offsets(message)
                    except KafkaException as error:  # the agent was away for so long that another reader has our part
                        self._note("errors", f"Kafka: {error.args[0]}: messages will come again")
        finally:
            consumer.close()

    def _note_problem(self, problem: KafkaError) -> None:
        self._note("errors", f"Kafka: {problem.str()}")

    def _note(self, counter: str, text: str) -> None:
        """Count, and say it the first times: who listens for weeks must not fill the disk."""
        self.counters[counter] += 1
        if self.counters[counter] <= PROBLEMS_TOLD:
            _tell(text)

    def _take(self, value: bytes) -> bool:
        """False when we are to end before it could be handed over: it comes again."""
        self.counters["messages"] += 1
        try:
            events = self._reader.read(value)
        except BillingError as error:
            self._note("refused", f"refused: {error}")
            return True
        if not events:
            self.counters["skipped"] += 1
            return True
        end = events[-1]
        transfer = end.transfer_id, end.key, end.end_time
        if transfer in self._handed_over:
            self.counters["repeated"] += 1
            return True
        if not self._hand_over(events):
            return False
        self._handed_over[transfer] = None
        if len(self._handed_over) > TRANSFERS_REMEMBERED:
            self._handed_over.popitem(last=False)
        return True

    def _hand_over(self, events: list[FlowEvent]) -> bool:
        while True:
            try:
                self._write(events)
            except (BlockingIOError, ConnectionRefusedError, FileNotFoundError, TimeoutError) as error:
                self.counters["waited"] += 1
                if self.counters["waited"] == 1:
                    _tell(f"the agent cannot be reached: {error.strerror}; trying again (said once)")
                if self._stopping.wait(RETRY_SECONDS):
                    return False
            else:
                self.counters["transfers"] += 1
                return True


def run(arguments: argparse.Namespace) -> int:
    """Read until a signal, or until --count messages were taken."""
    reader = BillingReader(vo_mapping.of_registry(names.choose(arguments).registry))
    settings = {
        "bootstrap.servers": arguments.bootstrap,
        "group.id": arguments.group,
        "log_level": "2",  # problems are told by us
        "auto.offset.reset": "latest" if arguments.latest else "earliest",
        **dict(_property(text) for text in arguments.property),
        # What has been handed over counts as read, and nothing else; it is committed in the background.
        "enable.auto.commit": "true",
        "enable.auto.offset.store": "false",
        "auto.commit.interval.ms": str(COMMIT_MILLISECONDS),
    }
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(agent_writer(arguments.to)) if arguments.to else _print
        consumption = Consumption(settings, arguments.topic, reader, write)
        for one in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, one, signal.signal(one, lambda *_: consumption.stop()))
        consumption.run(arguments.count)
    _tell(json_line(consumption.counters))
    return 0


@contextlib.contextmanager
def agent_writer(path: str) -> Iterator[Write]:
    """Hands events to the agent's socket (source unix), start and end of a transfer together."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.settimeout(SEND_SECONDS)

        def write(events: list[FlowEvent]) -> None:
            agent.sendto(b"[" + b",".join(encode_event(one) for one in events) + b"]", path)

        yield write


def _print(events: list[FlowEvent]) -> None:
    for one in events:
        sys.stdout.buffer.write(encode_event(one) + b"\n")
    sys.stdout.buffer.flush()


def _property(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise InvalidValue(f"--property {shown(text)} is not of the form NAME=VALUE")
    return name, value


def _tell(text: str) -> None:
    print(f"scitags: {text}", file=sys.stderr)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags dcache billing`."""
    parser.add_argument("--bootstrap", required=True, metavar="HOST:PORT", help="brokers of Kafka, comma between them")
    parser.add_argument("--topic", default=TOPIC, help="default: %(default)s")
    parser.add_argument("--group", default=GROUP, help="of consumers; default: %(default)s")
    parser.add_argument("--latest", action="store_true", help="a new group begins with what comes from now on")
    parser.add_argument("--to", metavar="SOCKET", help="the agent's (source unix); default: lines on standard output")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many messages")
    parser.add_argument(
        "--property", action="append", default=[], metavar="NAME=VALUE", help="one more of librdkafka's: TLS, SASL"
    )
    names.add_options(parser)
