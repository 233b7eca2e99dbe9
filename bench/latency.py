"""From the write of a start into the pipe to the first packet that bears the mark, at 1,000 events a second.

A connection sends packets all the while, each with the time at which it was sent; what arrives at the other end tells
which was the first that was marked. The starts are written by another process, as a storage's data are sent by other
threads than the one that tells of them: who writes into a pipe hands its processor over to the reader, and a sender
that does so sends nothing until the agent is done.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.pipe import wait_for
from scitags_agent.client import AgentClient
from tests.netns.namespaces import Namespace, NetworkUnavailable, add_address, link

TRIALS = 1000
# A trial: its start, an end and a start of others' flows every two milliseconds, its end.
PERIOD_SECONDS = 0.014
OTHERS_AT = (0.001, 0.003, 0.005, 0.007, 0.009, 0.011)
END_AT = 0.0125
EVENTS_PER_SECOND = round((2 + 2 * len(OTHERS_AT)) / PERIOD_SECONDS)
BEFORE_SECONDS, SENDING_SECONDS = 0.001, 0.01
PAUSE_SECONDS = 20e-6  # a sender that never sleeps would take a processor from the agent, of which there are two
BEGINS_SECONDS = 0.5
ALICE, BOB = "2001:db8::1", "2001:db8::2"
FIRST_PORT = 20_000
ETH_P_IPV6 = 0x86DD
_STAMP = struct.Struct("!Q")
_PAYLOAD_AT = 48


# What a storage tells. A process of its own also so that it holds nobody's lock; it says when it wrote each start.
WRITER = f"""
import os, sys, time
descriptor = os.open(sys.argv[1], os.O_WRONLY)
first = float(sys.argv[2])
told = []
number = 0
def wait(until):
    time.sleep(max(0.0, until - time.perf_counter()))
for trial in range({TRIALS}):
    began = first + trial * {PERIOD_SECONDS}
    words = b"udp {ALICE} %d {BOB} 9 2 15\\n" % ({FIRST_PORT} + trial)
    wait(began)
    told.append(time.perf_counter_ns())
    os.write(descriptor, b"start " + words)
    for at in {OTHERS_AT}:
        number += 1
        others = b"tcp {ALICE} %d 2001:db8::7 9 2 15\\n" % (1 + number % 15_000)
        wait(began + at)
        os.write(descriptor, b"start " + others)
        os.write(descriptor, b"end " + others)
    wait(began + {END_AT})
    os.write(descriptor, b"end " + words)
print(*told)
"""


class Sent(NamedTuple):
    """A packet that has arrived: when it was sent, by time.perf_counter_ns, and whether it bore a mark."""

    when: int
    is_marked: bool


def trial(alice: Namespace, wire: socket.socket, began: float, port: int) -> list[Sent]:
    """What one connection sends around the moment, by time.perf_counter, at which its start is to be written."""
    with alice.entered():
        sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sender:
        sender.bind((ALICE, port))
        sender.connect((BOB, 9))
        sender.send(_STAMP.pack(0))  # the neighbour is looked up before
        time.sleep(max(0.0, began - BEFORE_SECONDS - time.perf_counter()))
        while (now := time.perf_counter_ns()) < (began + SENDING_SECONDS) * 1e9:
            with contextlib.suppress(ConnectionRefusedError):
                sender.send(_STAMP.pack(now))
            time.sleep(PAUSE_SECONDS)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = wire.recv(128)
            if packet[6] == socket.IPPROTO_UDP and int.from_bytes(packet[40:42], "big") == port:
                is_marked = bool(int.from_bytes(packet[1:4], "big") & 0xFFFFF)
                found.append(Sent(_STAMP.unpack_from(packet, _PAYLOAD_AT)[0], is_marked))
    return found


def delay(sent: Sequence[Sent], began: int) -> float | None:
    """Seconds from the write to the first marked packet; None when none was marked in time."""
    marked = next((one.when for one in sent if one.is_marked), None)
    if marked is None or marked - began > SENDING_SECONDS * 1e9:
        return None
    return (marked - began) / 1e9


def main() -> None:
    try:
        _main()
    except NetworkUnavailable as error:
        print(f"latency: {error}")


def _main() -> None:
    with contextlib.ExitStack() as stack:
        alice, bob = (stack.enter_context(Namespace(name)) for name in ("alice", "bob"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        link(alice, "alice0", bob, "bob0")
        add_address(alice, "alice0", ALICE, 64)
        add_address(bob, "bob0", BOB, 64)
        alice.set_sysctl("ipv6/auto_flowlabels", "0")
        config = directory / "agent.toml"
        config.write_text(
            f'[agent]\nstate_directory = "{directory}/state"\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{directory}/flowd"\n'
            f'[[source]]\nkind = "unix"\npath = "{directory}/agent.sock"\n'
            '[[backend]]\nkind = "marker"\nrequired = true\n[[backend]]\nkind = "firefly"\n'
        )
        agent = alice.popen([sys.executable, "-m", "scitags_agent", "--config", str(config)], stderr=subprocess.DEVNULL)
        stack.callback(agent.wait, 30)
        stack.callback(agent.send_signal, signal.SIGTERM)
        with AgentClient(directory / "agent.sock") as client:
            wait_for(client)
        with bob.entered():
            wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6)))
        wire.bind(("bob0", ETH_P_IPV6))
        wire.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
        wire.setblocking(False)
        first = time.perf_counter() + BEGINS_SECONDS
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory / "flowd", str(first)], stdout=subprocess.PIPE, text=True
        )
        stack.callback(writer.kill)
        sent = [trial(alice, wire, first + n * PERIOD_SECONDS, FIRST_PORT + n) for n in range(TRIALS)]
        told, _ = writer.communicate(timeout=30)
        if writer.returncode:
            raise RuntimeError(f"the writer ended with {writer.returncode}")
        found = [delay(packets, int(began)) for packets, began in zip(sent, told.split(), strict=True)]
    times = sorted(one for one in found if one is not None)
    late = len(found) - len(times)
    print(f"\n{TRIALS:,} starts, each with its connection sending, {EVENTS_PER_SECOND:,} events/s in all")
    print(
        f"  to the first marked packet: median {statistics.median(times) * 1e3:.2f} ms, "
        f"p99 {times[int(len(times) * 0.99)] * 1e3:.2f} ms, worst {times[-1] * 1e3:.2f} ms; "
        f"{late} not marked within {SENDING_SECONDS * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
