"""Packets at random through the marker's program, by BPF_PROG_TEST_RUN: `python -m bench random_packets`.

Each is whole, cut short, or damaged in a few octets; with VLAN tags, extension headers, fragments. After the program it
must be octet for octet what it was, or differ in the 20 bits of the label alone, which are a known flow's; and the
program must pass it on. How many there are is in $PACKETS, ten million unless set: one goes through the program that
writes in place, the next through the one that writes by the kernel's helper, in turn.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import sys
import time
from collections import Counter

from scitags_agent.bpf.layout import TestRunOpts
from scitags_agent.bpf.libbpf import library
from scitags_agent.bpf.loader import MarkerProgram, probe
from scitags_core import label
from scitags_core.flow import FlowKey
from tests.netns import packets as p

PACKETS = int(os.environ.get("PACKETS", "10000000"))
SEED = 20261123
LABEL = label.encode(3, 14, 21)
FLOWS = [FlowKey.of(p.SRC, 1094, p.DST, 43720, kind) for kind in ("tcp", "udp")]
PASS_ON = -1  # TC_ACT_UNSPEC
SHORTEST = 15  # an Ethernet header and more
VLAN, SERVICE_VLAN = 0x8100, 0x88A8
TAGS: list[tuple[tuple[int, int], ...]] = [(), ((VLAN, 7),), ((SERVICE_VLAN, 7), (VLAN, 8)), ((VLAN, 1),) * 3]
CHAINS = [
    chain
    for length in range(5)
    for chain in itertools.product((p.HOP_BY_HOP, p.ROUTING, p.DESTINATION, p.FRAGMENT), repeat=length)
]


def bases(chance: random.Random) -> list[bytes]:
    """Whole packets of every header chain of up to four, of a known flow and of another, and of other kinds."""
    found = []
    for chain, tags in itertools.product(CHAINS, TAGS):
        protocol = chance.choice((p.TCP, p.UDP, p.ICMPV6))
        port = chance.choice((1094, 1094, 1095))
        payload = p.udp(port) if protocol == p.UDP else p.tcp(port)
        kind = protocol
        for header in reversed(chain):
            if header == p.FRAGMENT:
                payload = p.fragment(kind, chance.choice((0, 0, 3))) + payload
            else:
                payload = p.extension(kind, chance.choice((0, 1, 5))) + payload
            kind = header
        packet = p.ipv6(payload, kind, traffic_class=chance.randrange(256), label=chance.randrange(1 << 20))
        found.append(p.ethernet(packet, p.IPV6, *tags))
    found += [p.ethernet(bytes(60), kind) for kind in (p.IPV4, p.ARP)]
    return found


class Harness:
    """The program, and memory that is used again for each packet."""

    def __init__(self, program: MarkerProgram) -> None:
        self._descriptor = program.program_fd(ethernet=True)
        self._in = ctypes.create_string_buffer(4096)
        self._out = ctypes.create_string_buffer(4096)
        self._options = TestRunOpts(
            sz=ctypes.sizeof(TestRunOpts),
            data_in=ctypes.addressof(self._in),
            data_out=ctypes.addressof(self._out),
            repeat=1,
        )
        self._reference = ctypes.byref(self._options)
        self._library = library()

    def run(self, packet: bytes) -> tuple[int, bytes]:
        """The verdict and the packet afterwards."""
        options = self._options
        ctypes.memmove(self._in, packet, len(packet))
        options.data_size_in = len(packet)
        options.data_size_out = 4096
        self._library.call("bpf_prog_test_run_opts", self._descriptor, self._reference)
        return ctypes.c_int32(options.retval).value, ctypes.string_at(self._out, options.data_size_out)


def only_the_label_differs(before: bytes, after: bytes) -> bool:
    """Whether it is that of a known flow, in a place where an IPv6 header stands."""
    if len(before) != len(after):
        return False
    for at in (14, 18, 22):
        kind = before[at - 2 : at]
        if kind == b"\x86\xdd":
            word = int.from_bytes(before[at : at + 4], "big") & ~0xFFFFF | LABEL
            return after == before[:at] + word.to_bytes(4, "big") + before[at + 4 :]
        if kind not in (b"\x81\x00", b"\x88\xa8"):
            return False
    return False


def damaged(packet: bytes, chance: random.Random) -> bytes:
    """As it is, cut short, or with some octets changed; more often than not in the headers."""
    kind = chance.random()
    if kind < 0.3:
        return packet
    if kind < 0.5:
        return packet[: chance.randrange(SHORTEST, len(packet) + 1)]
    changed = bytearray(packet)
    for _ in range(1 + int(kind * 10) % 4):
        changed[int(chance.random() ** 2 * len(changed))] = int(chance.random() * 256)
    return bytes(changed)


def put_through(programs: list[MarkerProgram], chance: random.Random) -> Counter[str]:
    """What became of the packets. SystemExit, with the first that became what it must not."""
    harnesses, choices = [Harness(program) for program in programs], bases(chance)
    counts: Counter[str] = Counter()
    done = 0
    while done < PACKETS:
        packet = damaged(choices[int(chance.random() * len(choices))], chance)
        try:
            verdict, after = harnesses[done % len(harnesses)].run(packet)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            continue  # too short for its own network header: the kernel makes no such packet for a test
        done += 1
        if verdict != PASS_ON:
            sys.exit(f"verdict {verdict} for {packet.hex()}")
        if after == packet:
            counts["octet for octet as they were"] += 1
        elif only_the_label_differs(packet, after):
            counts["with a known flow's label, and nothing else changed"] += 1
        else:
            sys.exit(f"{packet.hex()} became {after.hex()}")
    return counts


def main() -> None:
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        print(f"\nrandom packets are left out: {reason}", file=sys.stderr)
        return
    programs = [MarkerProgram(max_flows=16), MarkerProgram(max_flows=16, in_place=False)]
    try:
        for program, flow in itertools.product(programs, FLOWS):
            program.set(flow, LABEL)
        began = time.monotonic()
        counts = put_through(programs, random.Random(SEED))  # to be the same each time
        print(f"\n{PACKETS:,} packets at random (seed {SEED}), in {time.monotonic() - began:.0f} s")
        for text, count in counts.items():
            print(f"  {text:<54} {count:>12,}")
        print("  any other verdict or change would have ended the run, and been shown")
        for program in programs:
            way = "in place" if program.why_not_in_place is None else f"by helper ({program.why_not_in_place})"
            print(f"  the program that writes {way} counted: {program.outcomes()}")
    finally:
        for program in programs:
            program.close()


if __name__ == "__main__":
    main()
