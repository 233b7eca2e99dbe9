"""The agent under load: events a second from the pipe to fireflies, with marks and without; memory; an idle agent.

Bursts at full speed, and a pace that is kept up, of which some flows are timed from the write to the firefly. Marks are
written by the program alone (label = "tc"), or by the kernel too (label = "auto"); all the while, packets of others
are looked at on the wire. The writer has its lines ready before the clock starts, and hands each over in a write of its
own. The collector takes what the kernel has joined (UDP_GRO), so that counting costs the machine little; nothing may be
missing there.
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
from typing import Literal

import msgspec

from bench.pipe import wait_for
from bench.witnesses import COUNT as WITNESSES
from bench.witnesses import Verdict, Witnesses
from scitags_agent.client import AgentClient
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace, NetworkUnavailable, add_address, link

EVENTS = 500_000
ROUNDS = 2
FLOWS = 100_000
IDLE_SECONDS = 10
LIMIT_SECONDS = 120.0
PACE_SECONDS = 20
# What there is besides fireflies (the marker's setting `label`), how it is called, and the paces, in events a second.
STAGES: tuple[tuple[Literal["", "tc", "auto"], str, tuple[int, ...]], ...] = (
    ("", "fireflies", (150_000,)),
    ("tc", "fireflies, marks by tc", (100_000, 125_000)),
    ("auto", "fireflies, marks auto", (100_000,)),
)
TAG = Tag(2, 15)
TIMED_A_SECOND = 100
POLL_SECONDS = 0.1  # a look at its counters costs the agent as much as many events
TICKS = os.sysconf("SC_CLK_TCK")

# A start and, some hundred lines later, its end; in writes of so many lines. With a pace, as many lines again each
# second, handed over each millisecond, and every tenth a flow of its own, to an address that the collector looks for:
# what is told are the moments of its writes, and how late the last of a millisecond's lines was at worst.
WRITER = """
import os, sys, time
count, lines, seconds = map(int, sys.argv[2:])
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
if not seconds:
    for piece in text:
        os.write(descriptor, piece)
    sys.exit()
began, late, written = time.monotonic(), 0, []
for tick in range(1000 * seconds):
    due = began + tick / 1000
    time.sleep(max(0, due - time.monotonic()))
    if tick % 10 == 0:
        written.append(time.monotonic())
        os.write(descriptor, b"start tcp 2001:db8::1 %d fd00:ffff::1 1094 2 15\\n" % len(written))
    for piece in text[tick % 1000 * len(text) // 1000:(tick % 1000 + 1) * len(text) // 1000]:
        os.write(descriptor, piece)
    late = max(late, time.monotonic() - due)
for number in range(len(written)):
    os.write(descriptor, b"end tcp 2001:db8::1 %d fd00:ffff::1 1094 2 15\\n" % (number + 1))
print(late, *written, flush=True)
"""

COLLECTOR = """
import re, socket, struct, sys, time
one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, 33, 512 << 20)
one.setsockopt(socket.IPPROTO_UDP, 104, 1)
one.bind(("::", 10514))
timed = re.compile(rb'"start","current[^{}]*},"flow-id":{[^{}]*"fd00:ffff::1","protocol":"tcp","src-port":([0-9]+)')
print("ready", flush=True)
count, arrived = 0, {}
while True:
    try:
        octets, control, _, _ = one.recvmsg(65536, 64)
    except TimeoutError:
        break
    if octets == b"stop":
        one.settimeout(0.5)  # one that it has overtaken
        continue
    size = len(octets)
    for _, kind, value in control:
        size = struct.unpack_from("i", value)[0]
    count += -(-len(octets) // size)
    if b"fd00:ffff::1" in octets:
        arrived.update(dict.fromkeys(map(int, timed.findall(octets)), time.monotonic()))
print(count, *(arrived[number] for number in sorted(arrived)), flush=True)
"""


class Measured(msgspec.Struct):
    """One run: events, seconds until the last was sent as a firefly, those that arrived, the agent's CPU seconds.

    Of a pace, too: by how many seconds the writer was late at worst, and seconds from writes to fireflies, in order.
    With marks, what was seen on the wire.
    """

    events: int
    seconds: float
    arrived: int
    cpu: float
    late: float
    delays: list[float]
    witnessed: Verdict | None


class Stage:
    """Two namespaces, an agent in one and a collector in the other."""

    def __init__(self, stack: contextlib.ExitStack, marks: str) -> None:
        self._host = stack.enter_context(Namespace("host"))
        network = stack.enter_context(Namespace("network"))
        link(self._host, "host0", network, "net0")
        add_address(self._host, "host0", "2001:db8::1", 64)
        add_address(network, "net0", "2001:db8::2", 64)
        self._network = network
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        config = self.directory / "agent.toml"
        marker = f'[[backend]]\nkind = "marker"\nrequired = true\nlabel = "{marks}"\n' if marks else ""
        self._witnesses = Witnesses(stack, self._host, network, TAG) if marks else None
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

    def run(self, events: int, lines: int, seconds: int = 0) -> Measured:
        """A burst of events; or, with seconds, as many in each of them, and the flows that are timed."""
        collector = self._network.popen(
            [sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert collector.stdout is not None
        collector.stdout.readline()
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, self.pipe, str(events), str(lines), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        total = events * seconds + TIMED_A_SECOND * 2 * seconds if seconds else events
        extra = self._announce_witnesses()
        before, cpu = self._sent(), self.cpu()
        began = time.perf_counter()
        writer.stdin.write("go\n")
        writer.stdin.flush()
        while self._sent() - before < total and time.perf_counter() - began < LIMIT_SECONDS:
            if self._witnesses is not None:
                self._witnesses.send()
            time.sleep(POLL_SECONDS)
        took = time.perf_counter() - began
        used = self.cpu() - cpu
        witnessed = self._witnesses.verdict() if self._witnesses is not None else None
        self._end_witnesses()
        late, *written = map(float, writer.communicate(timeout=LIMIT_SECONDS)[0].split() or ["0"])
        time.sleep(0.2)
        with self._host.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"stop", ("2001:db8::2", 10514))
        arrived, *at = map(float, collector.communicate(timeout=LIMIT_SECONDS)[0].split())
        delays = sorted(there - here for there, here in zip(at, written, strict=True))
        return Measured(total, took, int(arrived) - extra, used, late, delays, witnessed)

    def _announce_witnesses(self) -> int:
        """Have them marked; how many fireflies tell of them."""
        if self._witnesses is None:
            return 0
        before = self._sent()
        with self.pipe.open("wb", buffering=0) as pipe:
            pipe.write(self._witnesses.lines("start"))
        while self._sent() - before < WITNESSES:
            time.sleep(POLL_SECONDS)
        self._witnesses.forget()
        return 2 * WITNESSES

    def _end_witnesses(self) -> None:
        if self._witnesses is None:
            return
        before = self._sent()
        with self.pipe.open("wb", buffering=0) as pipe:
            pipe.write(self._witnesses.lines("end"))
        while self._sent() - before < WITNESSES:
            time.sleep(POLL_SECONDS)

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
def stage(marks: str) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, marks)


def main() -> None:
    try:
        _main()
    except NetworkUnavailable as error:
        print(f"agent: {error}")


def _main() -> None:
    print(f"\n{EVENTS:,} events, half of them ends, through a named pipe to fireflies")
    with contextlib.ExitStack() as stack:
        stages = [(name, paces, stack.enter_context(stage(marks))) for marks, name, paces in STAGES]
        _show_idle(stages[-1][2])
        for lines in (1, 500):
            for _ in range(ROUNDS):
                for name, _, one in stages:
                    _show_burst(name, lines, one.run(EVENTS, lines))
        for name, paces, one in stages:
            for rate in paces:
                _show_pace(name, rate, one.run(rate, 1, PACE_SECONDS))
    with stage("auto") as full:
        _show_full(full)


def _show_idle(one: Stage) -> None:
    print(f"  idle, resident: {one.memory():.1f} MB with pipe, socket, marker and fireflies")
    cpu = one.cpu()
    time.sleep(IDLE_SECONDS)
    print(f"  idle, CPU: {(one.cpu() - cpu) / IDLE_SECONDS:.2%} of a core")


def _show_burst(name: str, lines: int, found: Measured) -> None:
    print(
        f"  {name:<22} {lines:>4} lines a write: {found.events / found.seconds:>9,.0f} events/s, "
        f"{found.events - found.arrived} lost, {found.cpu / found.events * 1e6:.1f} us of CPU an event{_shown(found)}"
    )


def _show_pace(name: str, rate: int, found: Measured) -> None:
    delays = [1e3 * delay for delay in found.delays]
    median, late = delays[len(delays) // 2], delays[len(delays) * 99 // 100]
    print(
        f"  {name:<22} {rate:,} events/s for {PACE_SECONDS} s: {found.events - found.arrived} lost, "
        f"{found.cpu / found.seconds:.0%} of a core, the writer at most {1e3 * found.late:.1f} ms late; "
        f"from write to firefly: median {median:.1f} ms, p99 {late:.1f} ms, worst {delays[-1]:.1f} ms{_shown(found)}"
    )


def _shown(found: Measured) -> str:
    one = found.witnessed
    if one is None:
        return ""
    wrong = f"{one.wrong} of {one.seen:,} packets wrong"
    return f"; {wrong}, {one.strangers_marked} of {one.strangers:,} unannounced marked"


def _show_full(full: Stage) -> None:
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
