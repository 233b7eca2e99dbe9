"""From the write of a start into the pipe to the first packet that bears the mark, at 1,000 events a second.

A connection sends packets all the while, each with the time at which it was sent, while its start is written; what
arrives at the other end tells which was the first that was marked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.pipe import wait_for
from scitags_agent.client import AgentClient
from tests.netns.namespaces import Namespace, NetworkUnavailable, add_address, link

TRIALS = 1000
EVENTS_PER_SECOND = 1000
SENDING_SECONDS = 0.01
PAUSE_SECONDS = 20e-6  # a sender that never sleeps would take a processor from the agent, of which there are two
ALICE, BOB = "2001:db8::1", "2001:db8::2"
FIRST_PORT = 20_000
ETH_P_IPV6 = 0x86DD
_STAMP = struct.Struct("!Q")
_PAYLOAD_AT = 48


# Transfers of others that begin and end; in a process of its own, so that it holds nobody's lock.
LOAD = f"""
import os, sys, time
descriptor = os.open(sys.argv[1], os.O_WRONLY)
number = 0
while True:
    number += 1
    words = b"tcp 2001:db8::1 %d 2001:db8::7 9 2 15\\n" % (1 + number % 15_000)
    os.write(descriptor, b"start " + words)
    os.write(descriptor, b"end " + words)
    time.sleep(2 / {EVENTS_PER_SECOND})
"""


def trial(alice: Namespace, wire: socket.socket, descriptor: int, port: int) -> float | None:
    """Seconds from the write to the first marked packet; None when none was marked in time."""
    with alice.entered():
        sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sender:
        sender.bind((ALICE, port))
        sender.connect((BOB, 9))
        sender.send(_STAMP.pack(0))  # the neighbour is looked up before the clock starts
        time.sleep(0.001)
        began = time.perf_counter_ns()
        os.write(descriptor, f"start udp {ALICE} {port} {BOB} 9 2 15\n".encode())
        while (now := time.perf_counter_ns()) - began < SENDING_SECONDS * 1e9:
            with contextlib.suppress(ConnectionRefusedError):
                sender.send(_STAMP.pack(now))
            time.sleep(PAUSE_SECONDS)
    os.write(descriptor, f"end udp {ALICE} {port} {BOB} 9 2 15\n".encode())
    first = None
    time.sleep(0.002)
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = wire.recv(128)
            if packet[6] != socket.IPPROTO_UDP or int.from_bytes(packet[40:42], "big") != port:
                continue
            if int.from_bytes(packet[1:4], "big") & 0xFFFFF and first is None:
                first = _STAMP.unpack_from(packet, _PAYLOAD_AT)[0]
    return None if first is None else (first - began) / 1e9


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
        others = subprocess.Popen([sys.executable, "-c", LOAD, directory / "flowd"])
        stack.callback(others.wait, 30)
        stack.callback(others.kill)
        descriptor = os.open(directory / "flowd", os.O_WRONLY)
        stack.callback(os.close, descriptor)
        found = [trial(alice, wire, descriptor, FIRST_PORT + number) for number in range(TRIALS)]
    times = sorted(one for one in found if one is not None)
    late = len(found) - len(times)
    print(f"\n{TRIALS:,} starts, each with its connection sending, beside {EVENTS_PER_SECOND:,} events/s of others")
    print(
        f"  to the first marked packet: median {statistics.median(times) * 1e3:.2f} ms, "
        f"p99 {times[int(len(times) * 0.99)] * 1e3:.2f} ms, worst {times[-1] * 1e3:.2f} ms; "
        f"{late} not marked within {SENDING_SECONDS * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
