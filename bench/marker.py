"""What the marker costs: nanoseconds for a packet over a program that does nothing, then real transfers on veth."""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import struct
import sys
import threading
import time
from contextlib import ExitStack

from scitags_agent.bpf import attach
from scitags_agent.bpf.interfaces import matching
from scitags_agent.bpf.libbpf import library
from scitags_agent.bpf.loader import MarkerProgram, probe, test_run
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p
from tests.netns.namespaces import Namespace, add_address, link

REPEAT = 1_000_000
ROUNDS = 7
SECONDS = 1.0
TRANSFER_ROUNDS = 5
ALICE, BOB, PORT = "2001:db8::1", "2001:db8::2", 1094
LABEL = label.encode(3, 14, 21)

BPF_PROG_LOAD = 5
BPF_PROG_TYPE_SCHED_CLS = 3
# Two instructions: the verdict TC_ACT_UNSPEC into register 0, and the end.
_EMPTY = struct.pack("<BBhi", 0xB7, 0, 0, -1) + struct.pack("<BBhi", 0x95, 0, 0, 0)


class ProgramLoad(ctypes.Structure):
    """The beginning of union bpf_attr for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
    )


def empty_program() -> int:
    """The descriptor of a program that passes every packet on."""
    code, license_text = ctypes.create_string_buffer(_EMPTY), ctypes.create_string_buffer(b"Apache-2.0")
    request = ProgramLoad(BPF_PROG_TYPE_SCHED_CLS, 2, ctypes.addressof(code), ctypes.addressof(license_text))
    return library().syscall(BPF_PROG_LOAD, request)


def single_packets(program: MarkerProgram) -> None:
    """BPF_PROG_TEST_RUN, all cases in turn."""
    program.set(FlowKey.of(p.SRC, 1094, p.DST, 43720), LABEL)
    ours, empty = program.program_fd(ethernet=True), empty_program()
    known = p.ethernet(p.ipv6(p.tcp()))
    cases = {
        "a program that does nothing": (empty, known),
        "not IPv6": (ours, p.ethernet(b"\x45" + bytes(60), p.IPV4)),
        "miss: no flow has the source port": (ours, p.ethernet(p.ipv6(p.tcp(source=1095)))),
        "miss: a flow has the source port": (ours, p.ethernet(p.ipv6(p.tcp(destination=1)))),
        "hit: the label is written": (ours, known),
    }
    found: dict[str, list[int]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (descriptor, packet) in cases.items():
            found[name].append(test_run(descriptor, packet, REPEAT).nanoseconds)
    os.close(empty)
    base = found["a program that does nothing"]
    print(f"\nthe marker's program on a packet, BPF_PROG_TEST_RUN, median of {ROUNDS} interleaved rounds")
    for name, values in found.items():
        over = statistics.median(value - zero for value, zero in zip(values, base, strict=True))
        print(f"  {name:<44} {statistics.median(values):>6.0f} ns   {over:>+5.0f} ns over nothing")


def transfers(program: MarkerProgram) -> None:
    """TCP between two namespaces, three ways in turn."""
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        add_address(alice, "alice0", ALICE, 64)
        add_address(bob, "bob0", BOB, 64)
        for port in (40001, 40002):
            program.unset(FlowKey.of(ALICE, port, BOB, PORT))
        program.set(FlowKey.of(ALICE, 40002, BOB, PORT), LABEL)
        found: dict[str, list[float]] = {"no program": [], "program, flow unknown": [], "program, flow marked": []}
        for _ in range(TRANSFER_ROUNDS):
            for name, port in zip(found, (40000, 40001, 40002), strict=True):
                attached = None
                if name != "no program":
                    with alice.entered():
                        attached = attach.attach(program, matching(["alice0"])[0].index, ethernet=True, way="auto")
                found[name].append(throughput(alice, bob, port))
                if attached is not None:
                    with alice.entered():
                        attached.detach()
    base = found["no program"]
    print(f"\nTCP over veth, one stream, {SECONDS} s each, median of {TRANSFER_ROUNDS} interleaved rounds")
    for name, values in found.items():
        ratio = statistics.median(value / zero for value, zero in zip(values, base, strict=True))
        print(f"  {name:<44} {statistics.median(values) / 1e9 * 8:>6.1f} Gbit/s   x {ratio:.2f}")


def throughput(alice: Namespace, bob: Namespace, port: int) -> float:
    """Octets a second from alice to bob."""
    with bob.entered():
        server = socket.create_server((BOB, PORT), family=socket.AF_INET6)
    with alice.entered():
        client = socket.socket(socket.AF_INET6)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((ALICE, port))
    client.connect((BOB, PORT))
    accepted, _ = server.accept()
    # A reset, so that the same ports can be had again at once.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    received = 0
    end = time.monotonic() + SECONDS

    def send() -> None:
        chunk = bytes(1 << 20)
        while time.monotonic() < end:
            client.sendall(chunk)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    began = time.monotonic()
    buffer = bytearray(1 << 20)
    while count := accepted.recv_into(buffer):
        received += count
    elapsed = time.monotonic() - began
    sender.join()
    for one in (accepted, client, server):
        one.close()
    return received / elapsed


def main() -> None:
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        print(f"\nthe marker's bench is left out: {reason}", file=sys.stderr)
        return
    program = MarkerProgram(1024)
    try:
        single_packets(program)
        transfers(program)
    finally:
        program.close()
