"""What it costs to be told of connections: connections a second on loopback, then a report in the agent.

python -m bench.connections
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.measure import interleaved, show
from scitags_agent.bpf.connections import ConnectionsProgram, cgroup_root, probe
from scitags_agent.bpf.connections_layout import PortFilter
from tests.netns.namespaces import Namespace

CONNECTIONS = 1_000
ROUNDS = 21
PORT = 1094
OTHERS = [PortFilter(local=(9, 9))]
AT_ONCE = 512
DELAYS = 500
RESET = struct.pack("ii", 1, 0)


@contextmanager
def listening() -> Iterator[tuple[str, int]]:
    """A server on loopback that takes connections and drops them."""
    server = socket.create_server(("::1", PORT), family=socket.AF_INET6, backlog=1024)

    def serve() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ("::1", PORT)
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


def connect(address: tuple[str, int], count: int) -> None:
    for _ in range(count):
        with socket.create_connection(address) as one:
            # No TIME_WAIT: there are only so many ports.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def rates(address: tuple[str, int]) -> None:
    """Opening and closing, with and without somebody who wants to know."""

    def case(make: Callable[[], ConnectionsProgram] | None) -> Callable[[], int]:
        def run() -> int:
            program = make() if make else None
            try:
                connect(address, CONNECTIONS)
            finally:
                if program is not None:
                    program.close()
            return CONNECTIONS

        return run

    cases = {
        "nobody is told": case(None),
        "of other ports": case(lambda: ConnectionsProgram(cgroup_root(), filters=OTHERS)),
        "of all, opening to close": case(lambda: ConnectionsProgram(cgroup_root())),
    }
    show(
        "connections on loopback, opened and reset; a case includes loading its program",
        "connections",
        interleaved(cases),
    )


def reading(address: tuple[str, int]) -> None:
    """A report from the ring buffer to a value, and what it takes to come."""
    spent = []
    for _ in range(5):
        program = ConnectionsProgram(cgroup_root())
        connect(address, CONNECTIONS)
        time.sleep(0.1)
        count, began = 0, time.perf_counter()
        while taken := len(program.take(AT_ONCE)):
            count += taken
        spent.append((time.perf_counter() - began) / count)
        program.close()
    print(f"\nreading a report: {statistics.median(spent) * 1e6:.1f} us (median of 5 rounds)")
    program = ConnectionsProgram(cgroup_root())
    delays = []
    for _ in range(DELAYS):
        with socket.create_connection(address):
            select.select([program.fileno()], [], [])
            reports = program.take(AT_ONCE)
            delays.append(time.monotonic_ns() - reports[0].when)
        time.sleep(0.001)
        program.take(AT_ONCE)
    program.close()
    delays.sort()
    print(f"from the first SYN to a value in a process that waits: median {delays[DELAYS // 2] / 1000:.0f} us")


def main() -> None:
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        print(f"\nthe bench of connections is left out: {reason}", file=sys.stderr)
        return
    namespace = Namespace("bench")
    with namespace, namespace.entered(), listening() as address:
        rates(address)
        reading(address)


if __name__ == "__main__":
    main()
