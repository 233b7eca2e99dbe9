"""Where in the kernel a header's price is paid: `python -m bench kernel_time` (needs perf; Debian: linux-perf).

The connections of bench/speed.py, while perf looks 8,000 times a second at what both ends do (cpu-clock): the same
connection with its mark and without, in turns. The same octets are sent each time, so that samples are time for the
same work; what both do differs all the same from one time to the next, so it is what only one of them does that tells.
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

from bench.speed import Switched, Turns, hosts
from bench.ways import OURS, opened
from scitags_agent.bpf.kernel_label import probe

WAYS = ("header, on the socket", "header, at tc")
MTUS = (1500, 9000)
ROUNDS, SLICES = 8, 40
SAMPLES_A_SECOND = 8000
PERF_BEGINS_SECONDS = 0.4
EVERYTHING = "all"
# Functions of the kernel, by what they do for us.
GROUPS: Mapping[str, str] = {
    EVERYTHING: "",
    "copying the data": r"^_copy_(from|to)_iter$",
    "a route for each packet received": r"^(ip6_route_input|ip6_pol_route|fib6_|__?find_rr_leaf|find_rr_leaf|rt6_)",
    "socket found before the route": r"^(tcp_v6_early_demux|ip6_dst_check)$",
    "options written and read": r"^(ipv6_push_|ipv6_destopt_rcv|ip6_parse_tlv|fl6_update_dst)",
    "the program at tc": r"^(bpf_prog_.*scitags_header|bpf_skb_|bpf_skc_to_tcp6|skb_ensure_writable|tcx_run)",
    "its segments counted again": r"^(skb_gso_|__skb_gso_segment|(skb_mac|ipv6|tcp6?)_gso_segment)",
    "segmenting, checksums": r"(skb_segment|csum|checksum)",
}


class Spent(msgspec.Struct, frozen=True):
    """Samples of one way at one MTU, by what was done, with its mark and without."""

    way: str
    mtu: int
    marked: dict[str, int]
    unmarked: dict[str, int]


def measured(way: str, mtu: int, rounds: int, slices: int) -> Spent:
    """One way at one MTU. Raises MarkerUnavailable, OSError."""
    allowed = os.sched_getaffinity(0)
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    try:
        with ExitStack() as stack:
            alice, bob = stack.enter_context(hosts(mtu, 0))
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ways = opened(stack, [way], alice, "alice0", {})
            turns = stack.enter_context(Turns(alice, bob, 1))
            connection = Switched(turns, 0, ways[way], mtu)
            for number in range(rounds):
                # There and back, so that what changes steadily hits both alike.
                for is_marked in (True, False) if number % 2 else (False, True):
                    connection.take(marked=is_marked)
                    found[is_marked] += _looked_at(turns, slices, directory / "perf.data")
    finally:
        os.sched_setaffinity(0, allowed)
    marked, unmarked = (
        {group: _sum(found[is_marked], pattern) for group, pattern in GROUPS.items()} for is_marked in (True, False)
    )
    return Spent(way, mtu, marked, unmarked)


def _looked_at(turns: Turns, slices: int, data: Path) -> Counter[str]:
    """Samples by function while the connection sends so many slices."""
    processes = f"{os.getpid()},{turns.receiver}"
    record = ["perf", "record", "-q", "-F", str(SAMPLES_A_SECOND), "-e", "cpu-clock", "-p", processes, "-o", str(data)]
    perf = subprocess.Popen(record, stderr=subprocess.DEVNULL)
    try:
        time.sleep(PERF_BEGINS_SECONDS)
        for _ in range(slices):
            turns.take(0)
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
    """A table for each way and MTU: samples, and what is more or less, of the unmarked total."""
    for one in found:
        print(f"\nsamples of both ends for the same octets by the same connection: {one.way}, MTU {one.mtu}")
        print(f"  {'':<36}{'unmarked':>10}{'marked':>10}")
        for group in GROUPS:
            without, with_mark = one.unmarked[group], one.marked[group]
            share = 100 * (with_mark - without) / one.unmarked[EVERYTHING]
            print(f"  {group:<36}{without:>10,}{with_mark:>10,} {share:>+7.2f} %")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench kernel_time", description="where a header's price is paid")
    parser.add_argument("--mtu", type=int, action="append")
    parser.add_argument("--ways", nargs="+", choices=tuple(OURS), default=WAYS, metavar="WAY", help="; ".join(OURS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--slices", type=int, default=SLICES, help="of 48 MiB, in each round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    reason = "needs root" if os.geteuid() != 0 else "needs perf" if shutil.which("perf") is None else probe()
    if reason is not None:
        print(f"\nthe bench of the kernel's time is left out: {reason}", file=sys.stderr)
        return
    found = [measured(way, mtu, options.rounds, options.slices) for way in options.ways for mtu in options.mtu or MTUS]
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
