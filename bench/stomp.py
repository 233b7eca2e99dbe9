"""FTS's completion messages through a real broker: how many a second are read, beside a reader that keeps nothing.

All messages are with the broker before the first is taken, so that no sender's time is counted.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.measure import Result, show
from scitags_core.registry_client import built_in
from scitags_fts.completions import CompletionReader
from scitags_fts.completions_command import Scribe
from scitags_fts.stomp_reader import TOPIC, StompReader, Subscription
from scitags_fts.stomp_reader import Broker as Address
from tests.fts.broker import Broker
from tests.fts.test_completions import message

MESSAGES = 20_000
ROUNDS = 3
FIGURE = 5_000  # a second


def read(broker: Broker, name: str, write: Callable[[Sequence[bytes]], None], count: int) -> float:
    """Take so many messages of a durable subscription; seconds."""
    reader = StompReader(Address("127.0.0.1", broker.port), Subscription(f"{TOPIC}.{name}", name), write)
    began = time.perf_counter()
    reader.run(count)
    return time.perf_counter() - began


def subscribe(broker: Broker, name: str) -> None:
    """Have the broker keep what comes: one message is sent and taken."""
    broker_is_told = message()
    reader = StompReader(Address("127.0.0.1", broker.port), Subscription(f"{TOPIC}.{name}", name), forget)
    listening = threading.Thread(target=reader.run, args=(1,))
    listening.start()
    while not reader.counters["connections"]:
        time.sleep(0.01)
    broker.send([broker_is_told], f"{TOPIC}.{name}")
    listening.join()


def forget(_: Sequence[bytes]) -> None:
    """Keep nothing."""


def main() -> None:
    # What FTS sends is about so long, with the user's metadata.
    messages = [message(number, job_metadata={"pad": "x" * 1500}) for number in range(MESSAGES)]
    rates: dict[str, list[float]] = {"taken and forgotten": [], "taken, and its record safe in a file": []}
    with tempfile.TemporaryDirectory(prefix="scitags-bench-") as made:
        broker = Broker(Path(made))
        try:
            for _ in range(ROUNDS):
                for number, case in enumerate(rates):
                    name = f"bench{number}"
                    subscribe(broker, name)
                    broker.send(messages, f"{TOPIC}.{name}")
                    with (Path(made) / "completions.jsonl").open("ab") as file:
                        scribe = Scribe(CompletionReader(built_in().registry), file, print)
                        seconds = read(broker, name, scribe.write if number else forget, MESSAGES)
                    rates[case].append(MESSAGES / seconds)
        finally:
            broker.close()
    base = next(iter(rates.values()))
    results = [
        Result(case, statistics.median(found), statistics.median(a / b for a, b in zip(base, found, strict=True)))
        for case, found in rates.items()
    ]
    show(f"{MESSAGES:,} completion messages of a durable subscription", "messages", results)
    print(f"  the figure to reach is {FIGURE:,} messages/s")


if __name__ == "__main__":
    main()
