"""What metrics and records cost an agent that sends fireflies, with scrapers that behave and others that do not."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import interleaved, show
from bench.pipe import wait_for
from scitags_agent.client import AgentClient

TRANSFERS = 30_000
ROUNDS = 5

# Starts and ends, as many to a write as the kernel keeps together.
WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY)
octets = b""
for number in range(int(sys.argv[2])):
    for state in (b"start", b"end"):
        octets += b"%s tcp 2001:db8::1 1094 2001:db8::2 %d 2 15\\n" % (state, 1 + number % 60000)
    if len(octets) > 3900:
        os.write(descriptor, octets)
        octets = b""
os.write(descriptor, octets)
"""

# One that comes again as soon as it was served, four that send nothing, four that take nothing.
SCRAPERS = """
import socket, sys
def connect():
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.connect(("127.0.0.1", int(sys.argv[1])))
    return one
held = []
while True:
    if len(held) < 8:
        held.append(connect())
        if len(held) > 4:
            held[-1].sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
    one = connect()
    try:
        one.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
        while one.recv(1 << 16):
            pass
    except OSError:
        pass
    one.close()
"""


class Rig:
    """An agent with fireflies and something besides."""

    def __init__(self, directory: Path, name: str, more: str, collector: int) -> None:
        self._pipe = directory / f"{name}.pipe"
        config = directory / f"{name}.toml"
        config.write_text(
            f'[agent]\nstate_directory = "{directory}/{name}.state"\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{self._pipe}"\n'
            f'[[source]]\nkind = "unix"\npath = "{directory}/{name}.sock"\n'
            f'[[backend]]\nkind = "firefly"\nto_destination = false\ncollectors = ["[::1]:{collector}"]\n{more}'
        )
        self.process = subprocess.Popen([sys.executable, "-m", "scitags_agent", "--config", config])
        self.client = AgentClient(directory / f"{name}.sock")
        wait_for(self.client)

    def run(self) -> int:
        """Write, and wait until every backend is done."""
        before = self._done()
        subprocess.run([sys.executable, "-c", WRITER, self._pipe, str(TRANSFERS)], check=True, timeout=120)
        while self._done() - before < 2 * TRANSFERS:
            time.sleep(0.01)
        return 2 * TRANSFERS

    def _done(self) -> int:
        backends = self.client.status(timeout=30)["backends"]
        if any(backend["queued"] for backend in backends.values()):
            return 0
        return int(backends["firefly"]["sent"])

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(30)


@contextlib.contextmanager
def scraped(port: int) -> Iterator[None]:
    """While scrapers of every kind are at the port."""
    process = subprocess.Popen([sys.executable, "-c", SCRAPERS, str(port)])
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as collector,
        contextlib.ExitStack() as rigs,
    ):
        collector.bind(("::1", 0))
        directory, port = Path(name), free_port()
        metrics = f'[[backend]]\nkind = "prometheus"\nport = {port}\n'
        records = f'[[backend]]\nkind = "jsonl"\npath = "{directory}/flows.jsonl"\n'

        def rig(name: str, more: str) -> Rig:
            one = Rig(directory, name, more, collector.getsockname()[1])
            rigs.callback(one.stop)
            return one

        alone, shown, written = rig("alone", ""), rig("metrics", metrics), rig("records", records)

        def besieged() -> int:
            with scraped(port):
                return shown.run()

        cases: dict[str, Callable[[], int]] = {
            "fireflies alone": alone.run,
            "and metrics": shown.run,
            "and metrics, scrapers that flood and stall": besieged,
            "and records in a file": written.run,
        }
        results = interleaved(cases, rounds=ROUNDS)
    show(f"{2 * TRANSFERS:,} events through a named pipe, in bulk", "events", results)
