"""Short downloads, each by a connection of its own: what marks cost them, of which most of the life is their beginning.

    python -m bench downloads [--rounds N] [--octets N ...] [--delay MS]

A storage accepts a connection, tells the agent through the named pipe, and sends, without waiting for the mark, which
comes into force meanwhile. So a header at tc finds packets under way for which no room has been reserved, and the
route changes in the midst of the download. The same download, over the same kind of path, is made with an agent that
marks nothing, in turns; each time is from before the client connects until it has all, and ratios are of each round.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench.paths import Joined, Limits, PathCounters, PathUnavailable, joined
from bench.pipe import wait_for
from bench.resampling import median_of
from scitags_agent.client import AgentClient
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import NetworkUnavailable

PORT = 1094
MTU = 1500
LIMIT_SECONDS = 20.0
# The agent's backend, by what it does. Headers of accepted connections go in at tc, as a socket has no room for them.
WAYS = {
    "unmarked": "",
    "label, by the kernel": '[[backend]]\nkind = "marker"\nrequired = true\n',
    "label, at tc": '[[backend]]\nkind = "marker"\nrequired = true\nlabel = "tc"\n',
    "header": '[[backend]]\nkind = "extension_header"\nrequired = true\n',
}

# A storage: for each connection, as many octets as asked for, and what it tells of it.
STORAGE = f"""
import os, socket, sys
pipe = os.open(sys.argv[1], os.O_WRONLY)
block = bytes(1 << 20)
with socket.create_server(("{ALICE}", {PORT}), family=socket.AF_INET6, backlog=8) as server:
    print("ready", flush=True)
    while True:
        client, (_, port, *_) = server.accept()
        with client:
            left = int.from_bytes(client.recv(8), "big")
            words = b"tcp {ALICE} {PORT} {BOB} %d 2 15\\n" % port
            os.write(pipe, b"start " + words)
            while left > 0:
                left -= client.send(block[:left])
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
            os.write(pipe, b"end " + words)
"""


class Downloads(msgspec.Struct, frozen=True):
    """Of one size by one way: seconds of each, and what passed on the path."""

    seconds: list[float]
    passed: PathCounters


class Site:
    """A storage with its agent, a client, and the path between them."""

    def __init__(self, stack: ExitStack, backend: str, delay: float) -> None:
        """delay is in seconds, each way. Raises NetworkUnavailable or PathUnavailable."""
        self._path: Joined = stack.enter_context(joined(MTU, Limits(delay=delay, queue=10_000)))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        config, pipe = directory / "agent.toml", directory / "flowd"
        config.write_text(
            f'[agent]\nstate_directory = "{directory}/state"\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{pipe}"\n'
            f'[[source]]\nkind = "unix"\npath = "{directory}/agent.sock"\n{backend}'
            '[[backend]]\nkind = "firefly"\nto_destination = false\ncollectors = ["127.0.0.1"]\n'
        )
        command = [sys.executable, "-m", "scitags_agent", "--config", str(config)]
        agent = self._path.alice.popen(command, stderr=subprocess.DEVNULL)
        stack.callback(_stop, agent)
        wait_for(stack.enter_context(AgentClient(directory / "agent.sock")))
        storage = self._path.alice.popen([sys.executable, "-c", STORAGE, str(pipe)], stdout=subprocess.PIPE)
        stack.callback(_stop, storage)
        assert storage.stdout is not None
        storage.stdout.readline()

    def counters(self) -> PathCounters:
        """What came to the path so far."""
        return self._path.counters()

    def download(self, octets: int) -> float:
        """Seconds that it takes."""
        with self._path.bob.entered():
            client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        with client:
            client.settimeout(LIMIT_SECONDS)
            began = time.perf_counter()
            client.connect((ALICE, PORT))
            client.sendall(octets.to_bytes(8, "big"))
            left = octets
            while part := client.recv(1 << 20):
                left -= len(part)
            took = time.perf_counter() - began
        if left:
            raise AssertionError(f"{left} of {octets} octets did not arrive")
        return took


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def sites(delay: float) -> Iterator[dict[str, Site]]:
    """One for each way. Raises NetworkUnavailable or PathUnavailable."""
    with ExitStack() as stack:
        yield {way: Site(stack, backend, delay) for way, backend in WAYS.items()}


def measure(rounds: int, octets: int, there: dict[str, Site]) -> dict[str, Downloads]:
    """A download by each way in each round, in random order."""
    chance = random.Random(octets)
    before = {way: site.counters() for way, site in there.items()}
    seconds: dict[str, list[float]] = {way: [] for way in there}
    for _ in range(rounds):
        for way in chance.sample(list(there), len(there)):
            seconds[way].append(there[way].download(octets))
    return {way: Downloads(seconds[way], site.counters().since(before[way])) for way, site in there.items()}


def parser() -> argparse.ArgumentParser:
    """Its options."""
    found = argparse.ArgumentParser(prog="python -m bench downloads", description="short downloads by way of marking")
    found.add_argument("--rounds", type=int, default=100)
    found.add_argument("--octets", type=int, nargs="+", default=[20_000, 200_000, 2_000_000], metavar="N")
    found.add_argument("--delay", type=float, default=5.0, metavar="MS", help="of the path, each way")
    return found


def main(arguments: Sequence[str] = ()) -> None:
    options = parser().parse_args(arguments)
    try:
        with sites(options.delay / 1e3) as there:
            for octets in options.octets:
                show(octets, measure(options.rounds, octets, there), options.delay)
    except (NetworkUnavailable, PathUnavailable) as error:
        print(f"downloads: {error}")


def show(octets: int, found: dict[str, Downloads], delay: float) -> None:
    """A line for each way; ratios of the unmarked download of the same round, with intervals of 95 %."""
    print(f"\nDownloads of {octets:,} octets, a connection each, {delay:g} ms away, MTU {MTU}")
    unmarked = found["unmarked"].seconds
    for way, one in found.items():
        ratio = median_of([here / there for here, there in zip(one.seconds, unmarked, strict=True)])
        total = one.passed.marked + one.passed.unmarked
        print(
            f"  {way:<21} median {statistics.median(one.seconds) * 1e3:8.2f} ms, {ratio} of unmarked; "
            f"{total / len(one.seconds):8.1f} packets each, {one.passed.marked / total:4.0%} with a header, "
            f"{one.passed.runts / len(one.seconds):.1f} runts, {one.passed.lost + one.passed.queue_full} lost"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
