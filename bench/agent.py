"""The agent under load: events a second from the pipe to fireflies, with marks and without; memory; an idle agent.

The writer has its lines ready before the clock starts, and hands each over in a write of its own. The collector takes
what the kernel has joined (UDP_GRO), so that counting costs the machine little; nothing may be missing there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.pipe import wait_for
from scitags_agent.client import AgentClient
from tests.netns.namespaces import Namespace, NetworkUnavailable, add_address, link

EVENTS = 500_000
ROUNDS = 3
FLOWS = 100_000
IDLE_SECONDS = 10
LIMIT_SECONDS = 120.0
TICKS = os.sysconf("SC_CLK_TCK")

# A start and, some hundred lines later, its end; in writes of so many lines.
WRITER = """
import os, sys
count, lines = int(sys.argv[2]), int(sys.argv[3])
pairs = []
for number in range(count // 2):
    words = b"tcp 2001:db8::1 %d fd00:2:%x::1 1094 2 15\\n" % (1 + number % 60000, number // 60000)
    pairs.append((b"start " + words, b"end " + words))
ahead = 200
text = []
for number, (start, _) in enumerate(pairs):
    text.append(start)
    if number >= ahead:
        text.append(pairs[number - ahead][1])
text += [end for _, end in pairs[-ahead:]]
if lines > 1:
    text = [b"".join(text[at:at + lines]) for at in range(0, len(text), lines)]
descriptor = os.open(sys.argv[1], os.O_WRONLY)
print("ready", flush=True)
sys.stdin.readline()
for piece in text:
    os.write(descriptor, piece)
"""

COLLECTOR = """
import socket, struct, sys
one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, 33, 512 << 20)
one.setsockopt(socket.IPPROTO_UDP, 104, 1)
one.bind(("::", 10514))
print("ready", flush=True)
count = 0
while True:
    octets, control, _, _ = one.recvmsg(65536, 64)
    if octets == b"stop":
        break
    size = len(octets)
    for _, kind, value in control:
        size = struct.unpack_from("i", value)[0]
    count += -(-len(octets) // size)
print(count, flush=True)
"""


class Measured(msgspec.Struct):
    """One run: events, seconds until the last was sent as a firefly, those that arrived, the agent's CPU seconds."""

    events: int
    seconds: float
    arrived: int
    cpu: float


class Stage:
    """Two namespaces, an agent in one and a collector in the other."""

    def __init__(self, stack: contextlib.ExitStack, *, marks: bool) -> None:
        self._host = stack.enter_context(Namespace("host"))
        network = stack.enter_context(Namespace("network"))
        link(self._host, "host0", network, "net0")
        add_address(self._host, "host0", "2001:db8::1", 64)
        add_address(network, "net0", "2001:db8::2", 64)
        self._network = network
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        config = self.directory / "agent.toml"
        marker = '[[backend]]\nkind = "marker"\nrequired = true\n' if marks else ""
        config.write_text(
            f'[agent]\nstate_directory = "{self.directory}/state"\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{self.pipe}"\n'
            f'[[source]]\nkind = "unix"\npath = "{self.directory}/agent.sock"\n{marker}'
            '[[backend]]\nkind = "firefly"\nto_destination = false\ncollectors = ["2001:db8::2"]\n'
        )
        command = [sys.executable, "-m", "scitags_agent", "--config", str(config)]
        self.agent = self._host.popen(command, stderr=subprocess.DEVNULL)
        stack.callback(self._stop)
        self.client = stack.enter_context(AgentClient(self.directory / "agent.sock"))
        wait_for(self.client)

    @property
    def pipe(self) -> Path:
        return self.directory / "flowd"

    def _stop(self) -> None:
        self.agent.send_signal(signal.SIGTERM)
        self.agent.wait(60)

    def run(self, events: int, lines: int) -> Measured:
        collector = self._network.popen(
            [sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert collector.stdout is not None
        collector.stdout.readline()
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, self.pipe, str(events), str(lines)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        before, cpu = self._sent(), self.cpu()
        began = time.perf_counter()
        writer.stdin.write("go\n")
        writer.stdin.flush()
        while self._sent() - before < events and time.perf_counter() - began < LIMIT_SECONDS:
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        used = self.cpu() - cpu
        writer.wait(LIMIT_SECONDS)
        time.sleep(0.2)
        with self._host.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"stop", ("2001:db8::2", 10514))
        arrived = int(collector.communicate(timeout=LIMIT_SECONDS)[0])
        return Measured(events, seconds, arrived, used)

    def _sent(self) -> int:
        return int(self.client.status(timeout=60)["backends"]["firefly"]["sent"])

    def cpu(self) -> float:
        """CPU seconds of the agent so far."""
        fields = Path(f"/proc/{self.agent.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """Resident megabytes."""
        text = Path(f"/proc/{self.agent.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def stage(*, marks: bool) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, marks=marks)


def main() -> None:
    try:
        _main()
    except NetworkUnavailable as error:
        print(f"agent: {error}")


def _main() -> None:
    print(f"\n{EVENTS:,} events, half of them ends, through a named pipe to fireflies")
    with stage(marks=False) as plain, stage(marks=True) as marking:
        print(f"  idle, resident: {marking.memory():.1f} MB with pipe, socket, marker and fireflies")
        cpu = marking.cpu()
        time.sleep(IDLE_SECONDS)
        print(f"  idle, CPU: {(marking.cpu() - cpu) / IDLE_SECONDS:.2%} of a core")
        for lines in (1, 500):
            for _ in range(ROUNDS):
                for name, one in (("fireflies", plain), ("fireflies and marks", marking)):
                    found = one.run(EVENTS, lines)
                    print(
                        f"  {name:<20} {lines:>4} lines a write: {found.events / found.seconds:>9,.0f} events/s, "
                        f"{found.events - found.arrived} lost, {found.cpu / found.events * 1e6:.1f} us of CPU an event"
                    )
    with stage(marks=True) as full:
        before = full.memory()
        with full.pipe.open("wb", buffering=0) as pipe:
            for number in range(0, FLOWS, 500):
                pipe.write(
                    b"".join(
                        b"start tcp 2001:db8::1 %d fd00:2:%x::1 1094 2 15\n" % (1 + one % 60000, one // 60000)
                        for one in range(number, number + 500)
                    )
                )
        while int(full.client.status(timeout=60)["backends"]["marker"]["connections"]) < FLOWS:
            time.sleep(0.1)
        print(f"  {FLOWS:,} flows under way and marked: {full.memory():.0f} MB resident ({before:.0f} MB before)")


if __name__ == "__main__":
    main()
