"""kill -9 at random moments under load: what becomes of marks and of fireflies.

Two namespaces. In one the agent, with marker and fireflies, a writer that keeps the named pipe full of transfers that
begin and end, and a few witnesses: connections that send all the time while they are announced once. In the other all
that arrives is looked at.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec

from scitags_agent.client import AgentClient, AgentUnavailable
from scitags_core import firefly, label
from scitags_core.errors import FireflyError
from scitags_core.flow import FlowState
from scitags_core.tag import Tag
from tests.netns.namespaces import Namespace, add_address, link

KILLS = 200
WITNESSES = 20
FIRST_WITNESS = 30_000
TAG = Tag(2, 15)
ALICE, BOB = "2001:db8::1", "2001:db8::2"
EVENTS_PER_SECOND = 2_000
LIFE_SECONDS = 0.2
WAIT_SECONDS = 30.0
SO_RCVBUFFORCE = 33
ETH_P_IPV6 = 0x86DD


class Outcome(msgspec.Struct):
    """What was seen. All but the first four should be 0."""

    kills: int = 0
    transfers: int = 0
    witness_packets: int = 0
    fireflies: int = 0
    unmarked_packets: int = 0
    labels_that_changed: int = 0
    marked_after_the_end: int = 0
    starts_missing: int = 0
    starts_twice: int = 0
    ends_missing: int = 0
    ends_twice: int = 0
    flows_left: int = 0
    marks_left: int = 0


class Wire:
    """Labels of the witnesses' packets, as they arrive at the other end."""

    def __init__(self, host: Namespace, interface: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((interface, ETH_P_IPV6))
        self._socket.settimeout(0.1)
        self.labels: dict[int, Counter[int]] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def _drain(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                packet = self._socket.recv(128)
                port = int.from_bytes(packet[40:42], "big")
                if packet[6] == socket.IPPROTO_UDP and 0 <= port - FIRST_WITNESS < WITNESSES:
                    self.labels.setdefault(port, Counter())[int.from_bytes(packet[1:4], "big") & 0xFFFFF] += 1

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._socket.close()


class Fireflies:
    """Starts and ends by source port, as a collector gets them."""

    def __init__(self, host: Namespace) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind(("::", firefly.PORT))
        self._socket.settimeout(0.1)
        self.seen: dict[FlowState, Counter[tuple[int, int]]] = {state: Counter() for state in FlowState}
        self._stopping = False
        self._thread = threading.Thread(target=self._drain)
        self._thread.start()

    def _drain(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError, FireflyError):
                event = firefly.decode(self._socket.recv(4096)).event
                self.seen[event.state][event.key.src_port, event.key.dst_port] += 1

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._socket.close()


class Load:
    """Transfers that begin and end, and witnesses that send all the while."""

    def __init__(self, host: Namespace, pipe: Path) -> None:
        self._pipe = os.open(pipe, os.O_RDWR)  # as a Java service does: the pipe outlives its reader
        self._stopping = False
        self._sockets = []
        with host.entered():
            for number in range(WITNESSES):
                sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                sender.bind((ALICE, FIRST_WITNESS + number))
                sender.connect((BOB, 9))
                self._sockets.append(sender)
        self.transfers = 0
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._announce)]

    def tell(self, state: str, ports: tuple[int, int], protocol: str = "tcp") -> None:
        line = f"{state} {protocol} {ALICE} {ports[0]} {BOB} {ports[1]} {TAG.experiment} {TAG.activity}\n"
        os.write(self._pipe, line.encode())

    def tell_of_witnesses(self, state: str) -> None:
        for number in range(WITNESSES):
            self.tell(state, (FIRST_WITNESS + number, 9), "udp")

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every transfer; the witnesses send on."""
        self._stopping = True
        self._threads[1].join()

    def close(self) -> None:
        self._stopping = True
        self._silent = True
        for thread in self._threads:
            thread.join()
        for sender in self._sockets:
            sender.close()
        os.close(self._pipe)

    _silent = False

    def _send(self) -> None:
        while not self._silent:
            for sender in self._sockets:
                with contextlib.suppress(OSError):  # nobody listens there, and the host says so
                    sender.send(b"witness")
            time.sleep(0.005)

    def _announce(self) -> None:
        under_way: list[tuple[float, int]] = []
        while not self._stopping:
            now = time.monotonic()
            self.tell("start", ports_of(self.transfers))
            under_way.append((now + random.uniform(0, LIFE_SECONDS), self.transfers))
            self.transfers += 1
            for one in [one for one in under_way if one[0] <= now]:
                self.tell("end", ports_of(one[1]))
                under_way.remove(one)
            time.sleep(2 / EVENTS_PER_SECOND)
        for _, number in under_way:
            self.tell("end", ports_of(number))


def ports_of(number: int) -> tuple[int, int]:
    """Ports that no other transfer has, so that each can be told from the others."""
    return 1 + number % (FIRST_WITNESS - 1), 10 + number // (FIRST_WITNESS - 1)


class Agent:
    """The agent's process, again and again."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self._host = host
        self.pipe = directory / "flowd"
        self._socket = directory / "agent.sock"
        self._config = directory / "agent.toml"
        self._log = directory / "log"
        self._config.write_text(
            f'[agent]\nstate_directory = "{directory}/state"\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{self.pipe}"\n'
            f'[[source]]\nkind = "unix"\npath = "{self._socket}"\n'
            '[[backend]]\nkind = "marker"\nrequired = true\n[[backend]]\nkind = "firefly"\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "scitags_agent", "--config", str(self._config)]
            self._process = self._host.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(WAIT_SECONDS)

    def status(self) -> dict[str, dict[str, dict[str, int]]]:
        """What it counts, once it answers."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with AgentClient(self._socket) as client:
                    return client.status(timeout=1)
            except AgentUnavailable:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the agent does not answer: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.02)

    def wait_until_idle(self) -> dict[str, dict[str, dict[str, int]]]:
        """Its counters, once nothing more has come for a while."""
        before: object = None
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            status = self.status()
            now = status["sources"], status["backends"]["firefly"]["sent"]
            if now == before:
                break
            before = now
            time.sleep(0.5)
        return status


def run(kills: int, *, seed: int | None = None) -> Outcome:
    """Kill the agent so often, at moments that the seed determines."""
    chance = random.Random(seed)
    outcome = Outcome(kills=kills)
    with Namespace("alice") as alice, Namespace("bob") as bob, tempfile.TemporaryDirectory() as name:
        link(alice, "alice0", bob, "bob0")
        add_address(alice, "alice0", ALICE, 64)
        add_address(bob, "bob0", BOB, 64)
        # The kernel's own labels would hide a missing mark.
        alice.set_sysctl("ipv6/auto_flowlabels", "0")
        agent = Agent(alice, Path(name))
        with contextlib.ExitStack() as stack:
            fireflies = Fireflies(bob)
            stack.callback(fireflies.close)
            agent.start()
            stack.callback(agent.kill)
            agent.status()
            load = Load(alice, agent.pipe)
            load.tell_of_witnesses("start")
            while agent.status()["backends"]["marker"]["connections"] < WITNESSES:
                time.sleep(0.02)
            wire = Wire(bob, "bob0")
            stack.callback(wire.close)
            load.start()
            stack.callback(load.close)
            for _ in range(kills):
                time.sleep(chance.uniform(0, 0.6))
                agent.kill()
                time.sleep(chance.uniform(0, 0.2))
                agent.start()
            load.stop()
            agent.wait_until_idle()
            look_at_witnesses(wire, outcome)
            load.tell_of_witnesses("end")
            status = agent.wait_until_idle()
            wire.labels.clear()
            time.sleep(0.5)
            outcome.marked_after_the_end = sum(
                count for found in wire.labels.values() for seen, count in found.items() if seen
            )
            outcome.transfers = load.transfers + WITNESSES
            outcome.flows_left = int(status["table"]["flows"])  # type: ignore[call-overload]
            outcome.marks_left = status["backends"]["marker"]["connections"]
            agent.stop()
        look_at_fireflies(fireflies, outcome, load.transfers)
    return outcome


def look_at_witnesses(wire: Wire, outcome: Outcome) -> None:
    for found in list(wire.labels.values()):
        outcome.witness_packets += sum(found.values())
        outcome.unmarked_packets += found[0]
        outcome.labels_that_changed += len(found.keys() - {0}) > 1
        for seen in found.keys() - {0}:
            if label.decode(seen).tag != TAG:
                outcome.unmarked_packets += found[seen]


def look_at_fireflies(fireflies: Fireflies, outcome: Outcome, transfers: int) -> None:
    ports = {*map(ports_of, range(transfers)), *((FIRST_WITNESS + number, 9) for number in range(WITNESSES))}
    starts, ends = fireflies.seen[FlowState.START], fireflies.seen[FlowState.END]
    outcome.fireflies = starts.total() + ends.total()
    outcome.starts_missing, outcome.ends_missing = len(ports - starts.keys()), len(ports - ends.keys())
    outcome.starts_twice = sum(count > 1 for count in starts.values())
    outcome.ends_twice = sum(count > 1 for count in ends.values())


def main() -> None:
    seed = random.randrange(1 << 32)
    began = time.monotonic()
    outcome = run(KILLS, seed=seed)
    print(f"\n{KILLS} x kill -9 at random moments, seed {seed}, {time.monotonic() - began:.0f} s")
    for name, value in msgspec.structs.asdict(outcome).items():
        print(f"  {name.replace('_', ' '):<24} {value:>12,}")
