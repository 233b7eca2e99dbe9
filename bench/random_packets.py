"""Packets at random through the programs that mark, by BPF_PROG_TEST_RUN: `python -m bench random_packets`.

Each is whole, cut short, or damaged in a few octets; with VLAN tags, extension headers, fragments. After the marker's
program it must be octet for octet what it was, or differ in the 20 bits of the label alone, which are a known flow's.
After the program for extension headers it must be what it was, or have them behind its fixed header, in its length and
in its next header, and be the same in all else. Both must pass it on. How many there are is in $PACKETS, ten million
for each program unless set, the second in all its three ways.
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
from collections.abc import Callable

from scitags_agent.bpf.header_program import Header, HeaderProgram
from scitags_agent.bpf.layout import TestRunOpts
from scitags_agent.bpf.libbpf import library
from scitags_agent.bpf.loader import MarkerProgram, probe
from scitags_core import exthdr, label
from scitags_core.flow import FlowKey
from scitags_core.tag import Tag
from tests.netns import packets as p

PACKETS = int(os.environ.get("PACKETS", "10000000"))
SEED = 20261123
LABEL = label.encode(3, 14, 21)
FLOWS = [FlowKey.of(p.SRC, 1094, p.DST, 43720, kind) for kind in ("tcp", "udp")]
TAG = Tag(3, 14)
HEADER_KINDS: dict[Header, tuple[int, ...]] = {
    "destination-options": (p.DESTINATION,),
    "hop-by-hop": (p.HOP_BY_HOP,),
    "both": (p.HOP_BY_HOP, p.DESTINATION),
}
ETHERNET, FIXED = 14, 40
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


def plain(chance: random.Random, count: int) -> list[bytes]:
    """Whole packets without extension headers, short ones and long ones, some with an end of padding."""
    found = []
    for _ in range(count):
        port = chance.choice((1094, 1094, 1094, 1095))
        octets = bytes(chance.choice((0, 0, chance.randrange(64), chance.randrange(1500))))
        protocol = chance.choice((p.TCP, p.UDP))
        payload = (p.udp(port) if protocol == p.UDP else p.tcp(port)) + octets
        packet = p.ipv6(payload, protocol, traffic_class=chance.randrange(256), label=chance.randrange(1 << 20))
        found.append(
            p.ethernet(packet, p.IPV6, *chance.choice((*TAGS[:1] * 5, TAGS[1]))) + bytes(chance.choice((0,) * 9 + (4,)))
        )
    return found


class Harness:
    """The program, and memory that is used again for each packet."""

    def __init__(self, program: MarkerProgram | HeaderProgram) -> None:
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


def only_the_header_is_new(before: bytes, after: bytes, header: Header, tag: Tag) -> bool:
    """Whether headers with the tag stand behind the fixed one, counted in its length, and nothing else changed."""
    fixed = bytearray(before[ETHERNET : ETHERNET + FIXED])
    rest = before[ETHERNET + FIXED :]
    length, protocol = int.from_bytes(fixed[4:6], "big"), fixed[6]
    if before[12:ETHERNET] != b"\x86\xdd" or length != len(rest) or protocol not in (p.TCP, p.UDP):
        return False
    for kind in reversed(HEADER_KINDS[header]):
        rest, protocol = exthdr.encode(*tag, protocol) + rest, kind
    fixed[4:7] = len(rest).to_bytes(2, "big") + bytes((protocol,))
    return after == before[:ETHERNET] + bytes(fixed) + rest


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


def run(
    program: MarkerProgram | HeaderProgram,
    count: int,
    make: Callable[[random.Random], list[bytes]],
    changed: str,
    is_right: Callable[[bytes, bytes], bool],
) -> None:
    """So many of the packets that are made, damaged; the first that comes out wrong ends the process.

    changed says what became of those that are not as they were.
    """
    chance = random.Random(SEED)  # to be the same each time
    counts: Counter[str] = Counter()
    harness, choices = Harness(program), make(chance)
    began = time.monotonic()
    done = 0
    while done < count:
        packet = damaged(choices[int(chance.random() * len(choices))], chance)
        try:
            verdict, after = harness.run(packet)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            continue  # too short for its own network header: the kernel makes no such packet for a test
        done += 1
        if verdict != PASS_ON:
            sys.exit(f"verdict {verdict} for {packet.hex()}")
        if after == packet:
            counts["octet for octet as they were"] += 1
        elif is_right(packet, after):
            counts[changed] += 1
        else:
            sys.exit(f"{packet.hex()} became {after.hex()}")
    print(f"\n{count:,} packets at random (seed {SEED}), in {time.monotonic() - began:.0f} s")
    for text, number in counts.items():
        print(f"  {text:<54} {number:>12,}")
    print("  any other verdict or change would have ended the run, and been shown")
    print(f"  the program counted: {program.outcomes()}", flush=True)


def labels() -> None:
    """Through the marker's program, half of them, and through the one that writes by the kernel's helper alone."""
    for in_place in (True, False):
        program = MarkerProgram(max_flows=16, in_place=in_place)
        way = "in place" if program.why_not_in_place is None else f"by helper ({program.why_not_in_place})"
        try:
            for flow in FLOWS:
                program.set(flow, LABEL)
            print(f"\nlabels written {way}", end="")
            run(
                program,
                PACKETS // 2,
                bases,
                "with a known flow's label, and nothing else changed",
                only_the_label_differs,
            )
        finally:
            program.close()


def for_headers(chance: random.Random) -> list[bytes]:
    """Every header chain, and as many packets that have none."""
    found = bases(chance)
    return found + plain(chance, len(found))


def headers(header: Header) -> None:
    """Through the program for extension headers, a third of them."""
    program = HeaderProgram(header, max_flows=16)
    try:
        for flow in FLOWS:
            program.put(flow, TAG)

        def is_right(before: bytes, after: bytes) -> bool:
            return only_the_header_is_new(before, after, header, TAG)

        run(program, PACKETS // len(HEADER_KINDS), for_headers, f"with {header}, and nothing else changed", is_right)
    finally:
        program.close()


def main() -> None:
    reason = probe() if os.geteuid() == 0 else "needs root"
    if reason is not None:
        print(f"\nrandom packets are left out: {reason}", file=sys.stderr)
        return
    labels()
    for header in HEADER_KINDS:
        headers(header)


if __name__ == "__main__":
    main()
