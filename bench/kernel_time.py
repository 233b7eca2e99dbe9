"""Where in the kernel a header's price is paid: `python -m bench kernel_time` (needs perf; Debian: linux-perf).

The connections of bench/speed.py, while perf looks 4,000 times a second at what both ends do (cpu-clock). Each way has
the same octets to send, so that samples are time for the same work. Beside unmarked and marked connections stands an
unmarked one with segments of the marked one's size.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from bench.speed import (
    FIRST_CLIENT_PORT,
    FIXED_OCTETS,
    HEADER_OCTETS,
    PORT,
    TAG,
    UNMARKED,
    Turns,
    far_address,
    hosts,
)
from bench.ways import Stream, opened
from scitags_agent.bpf.kernel_label import probe
from scitags_core.flow import FlowKey
from tests.netns.conftest import ALICE

SHORT, HEADER = "unmarked, shorter segments", "header, on the socket"
NAMES = (UNMARKED, SHORT, HEADER)
MTUS = (1500, 9000, 9008)
ROUNDS, SLICES = 4, 30
SAMPLES_A_SECOND = 4000
PERF_BEGINS_SECONDS = 0.4
EVERYTHING = "all"
# Functions of the kernel, by what they do for us.
GROUPS: Mapping[str, str] = {
    EVERYTHING: "",
    "copying the data from the sender": r"^_copy_from_iter$",
    "copying the data to the receiver": r"^_copy_to_iter$",
    "a route for each packet received": r"^(ip6_route_input|ip6_pol_route|fib6_|__?find_rr_leaf|find_rr_leaf|rt6_)",
    "socket found before the route": r"^tcp_v6_early_demux$",
    "options written and read": r"^(ipv6_push_|ipv6_destopt_rcv|ip6_parse_tlv|fl6_update_dst)",
    "segmenting, checksums": r"(skb_segment|csum|checksum)",
}


class Spent(msgspec.Struct, frozen=True):
    """Samples of one way at one MTU, by what was done."""

    way: str
    mtu: int
    segment_octets: int
    samples: dict[str, int]


def measured(mtu: int, rounds: int, slices: int) -> list[Spent]:
    """The three ways in turn. Raises MarkerUnavailable, OSError."""
    segments = [mtu - FIXED_OCTETS - HEADER_OCTETS if name == SHORT else 0 for name in NAMES]
    allowed = os.sched_getaffinity(0)
    found: list[Counter[str]] = [Counter() for _ in NAMES]
    try:
        with ExitStack() as stack:
            alice, bob = stack.enter_context(hosts(mtu, 0))
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ways = opened(stack, NAMES, alice, "alice0", {})
            turns = stack.enter_context(Turns(alice, bob, segments))
            for number, way in enumerate(ways.values()):
                key = FlowKey.of(ALICE, FIRST_CLIENT_PORT + number, far_address(number), PORT)
                way.put_on([Stream(key, TAG, number, turns.senders[number])])
            for round_number in range(rounds):
                # There and back, so that what changes steadily hits all alike.
                for number in range(len(NAMES)) if round_number % 2 == 0 else reversed(range(len(NAMES))):
                    found[number] += _looked_at(turns, number, slices, directory / "perf.data")
            sizes = [turns.segment_octets(number) for number in range(len(NAMES))]
    finally:
        os.sched_setaffinity(0, allowed)
    return [
        Spent(name, mtu, size, {group: _sum(counter, pattern) for group, pattern in GROUPS.items()})
        for name, size, counter in zip(NAMES, sizes, found, strict=True)
    ]


def _looked_at(turns: Turns, number: int, slices: int, data: Path) -> Counter[str]:
    """Samples by function while a connection sends so many slices."""
    processes = f"{os.getpid()},{turns.receiver}"
    record = ["perf", "record", "-q", "-F", str(SAMPLES_A_SECOND), "-e", "cpu-clock", "-p", processes, "-o", str(data)]
    perf = subprocess.Popen(record, stderr=subprocess.DEVNULL)
    try:
        time.sleep(PERF_BEGINS_SECONDS)
        for _ in range(slices):
            turns.take(number)
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
    report = ["perf", "report", "-i", str(data), "--no-children", "--stdio", "-F", "sample,sym", "--sort", "sym"]
    told = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    samples: Counter[str] = Counter()
    for line in told.splitlines():
        # Such as: 1234 [k] tcp_sendmsg_locked
        fields = line.split()
        if len(fields) > 2 and fields[0].isdecimal():
            samples[fields[2]] += int(fields[0])
    return samples


def _sum(samples: Counter[str], pattern: str) -> int:
    return sum(count for name, count in samples.items() if re.search(pattern, name))


def show(found: Sequence[Spent]) -> None:
    """A table for each MTU: samples, and of the unmarked connection's total what is more or less."""
    for mtu in sorted({one.mtu for one in found}):
        of_mtu = [one for one in found if one.mtu == mtu]
        base = of_mtu[0].samples[EVERYTHING]
        print(f"\nsamples of both ends for the same octets, MTU {mtu}; beside the unmarked connection, of its whole")
        print(f"  {'':<34}" + "".join(f"{one.way + f' ({one.segment_octets})':>38}" for one in of_mtu))
        for group in GROUPS:
            counts = [one.samples[group] for one in of_mtu]
            line = f"  {group:<34}{counts[0]:>38,}"
            line += "".join(f"{count:>28,} {100 * (count - counts[0]) / base:>+7.1f} %" for count in counts[1:])
            print(line)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench kernel_time", description="where a header's price is paid")
    parser.add_argument("--mtu", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--slices", type=int, default=SLICES, help="of 48 MiB, in each round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    reason = "needs root" if os.geteuid() != 0 else "needs perf" if shutil.which("perf") is None else probe()
    if reason is not None:
        print(f"\nthe bench of the kernel's time is left out: {reason}", file=sys.stderr)
        return
    found = [one for mtu in options.mtu or MTUS for one in measured(mtu, options.rounds, options.slices)]
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
