"""What it takes to look at the connections of a host: dumps, look-ups, and their memory; beside pyroute2's dump."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable

from bench.measure import interleaved, show
from scitags_agent import connections
from scitags_agent.connections import Lookup, dump, survey
from scitags_core.flow import FlowKey

SIZES = (10_000, 100_000)
ROUNDS = 3
LOOKUPS = 2000
# Each holder has both ends of so many connections: a process has no more descriptors than its limit.
CONNECTIONS_HELD = 4000
STRANGER = FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720)

HOLDER = """
import resource, socket, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
    for _ in range(int(sys.argv[1])):
        held.append(socket.create_connection(listening.getsockname()[:2]))
        held.append(listening.accept()[0])
print("ready", flush=True)
sys.stdin.read()
"""

# In a process of its own, which has nothing else to remember: how much it grows.
MEMORY = """
import collections, sys
def peak(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
if sys.argv[1] == "pyroute2":
    from pyroute2 import DiagSocket
    before = peak()
    with DiagSocket() as diag:
        diag.bind()
        kept = list(diag.get_sock_stats(family=10, extensions=0b11))
else:
    from scitags_agent.connections import dump
    before = peak()
    found = dump("tcp", details=True)
    kept = list(found) if sys.argv[1] == "kept" else collections.deque(found, maxlen=0)
print((peak() - before) / 1024)
"""


def count(found: Iterable[object]) -> int:
    """How many there were; none is kept."""
    last = deque(enumerate(found, 1), maxlen=1)
    return last[0][0] if last else 0


def by_pyroute2() -> int:
    from pyroute2 import DiagSocket  # noqa: PLC0415

    with DiagSocket() as diag:
        diag.bind()
        return count(diag.get_sock_stats(family=socket.AF_INET6, extensions=0b11))


def look_up(lookup: Lookup, key: FlowKey) -> Callable[[], int]:
    def case() -> int:
        for _ in range(LOOKUPS):
            lookup.find(key)
        return LOOKUPS

    return case


def memory(case: str) -> float:
    answer = subprocess.run([sys.executable, "-c", MEMORY, case], check=True, capture_output=True, timeout=300)
    return float(answer.stdout)


def hold(sockets: int) -> list[subprocess.Popen[bytes]]:
    """Processes that hold so many sockets, once they do."""
    left = sockets // 2
    holders: list[subprocess.Popen[bytes]] = []
    while left:
        share = min(left, CONNECTIONS_HELD)
        command = [sys.executable, "-c", HOLDER, str(share)]
        holders.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        left -= share
    for holder in holders:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            sys.exit("the sockets to look at cannot be made")
    return holders


def main() -> None:
    for size in SIZES:
        holders = hold(size)
        try:
            measure(size, with_pyroute2=size == SIZES[0])  # a quarter of a minute a dump with the larger
        finally:
            for holder in holders:
                holder.kill()
                holder.communicate()


def measure(size: int, *, with_pyroute2: bool) -> None:
    known = {one.cookie for one in dump("tcp")}
    some = next(iter(dump("tcp"))).key
    cases: dict[str, Callable[[], int]] = {
        "the kernel's messages alone": lambda: count(connections._dump("tcp", 0, 0, connections.HERE)),  # noqa: SLF001
        "survey, all known": lambda: count(survey("tcp", known)),
        "dump": lambda: count(dump("tcp")),
        "dump with details": lambda: count(dump("tcp", details=True)),
    }
    if with_pyroute2:
        cases["pyroute2's dump, with tcp_info"] = by_pyroute2
    results = interleaved(cases, rounds=ROUNDS)
    show(f"{size:,} sockets: looking at all", "sockets", results)
    for result in results:
        print(f"  {result.case:<44} {size / result.per_second:>12.3f} s")
    with Lookup() as lookup:
        lookups = {"look-up, not there": look_up(lookup, STRANGER), "look-up, there": look_up(lookup, some)}
        show(f"{size:,} sockets: looking one up", "look-ups", interleaved(lookups, rounds=ROUNDS))
    print(f"\n{size:,} sockets: memory for a dump with details")
    for case in ("passed on", "kept", *["pyroute2"] * with_pyroute2):
        print(f"  {case:<44} {memory(case):>12.1f} MB")
