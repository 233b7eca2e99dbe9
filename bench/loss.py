"""Duplicate-SACKs that marking causes where packets get lost: `python -m bench loss [OPTION ...]`.

Streams over a path that loses data packets by chance (bench/path_box.c), for each way to mark; marks are on before the
first data. The streams are paced, so that the machine has time left, and send no tail loss probes: those take a pause
of the machine for a loss. A duplicate-SACK (RFC 2883) tells the sender that it has sent again what had arrived: a lost
packet needs none. What an unmarked transfer over the same path gets is what path and kernel do by themselves.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from bench.paths import SENDING, Limits, PathCounters, joined
from bench.sc24 import drawn_tags
from bench.speed import add_peers, peers_of
from bench.streams import Sample, Streams
from bench.ways import OURS, opened
from scitags_agent.bpf.kernel_label import probe

LOSS, DELAY, STREAMS, SEED = 2e-5, 0.001, 4, 2024
PACKETS = 600_000
PACE = 60_000_000  # octets a second of each stream: a sender that is kept waiting by others takes delay for loss
MTU = 9000
CHECK_SECONDS, LONGEST_SECONDS = 0.1, 120.0
UNMARKED = "unmarked"


class Lossy(msgspec.Struct, frozen=True):
    """One way. Counts are over the whole transfer."""

    way: str
    mtu: int
    path: PathCounters
    retransmitted: int
    dsacks: int
    reorderings: int
    gigabits_per_second: float


def transfer(name: str, mtu: int, packets: int, limits: Limits, peers: Mapping[str, Path]) -> Lossy:
    """Until so many packets have come to the path. Raises MarkerUnavailable, PathUnavailable, OSError."""
    allowed = os.sched_getaffinity(0)
    try:
        with ExitStack() as stack:
            hosts = stack.enter_context(joined(mtu, limits))
            hosts.alice.set_sysctl("ipv4/tcp_early_retrans", "0")
            way = opened(stack, [name], hosts.alice, SENDING, peers)[name]
            waiting = Streams(hosts, drawn_tags(SEED, STREAMS), octets_per_second=PACE)
            way.put_on(waiting.streams)
            first = waiting.sample()
            streams = stack.enter_context(waiting)
            deadline = time.monotonic() + LONGEST_SECONDS
            while _passed(path := hosts.counters()) < packets and time.monotonic() < deadline:
                time.sleep(CHECK_SECONDS)
            return _found(name, mtu, path, first, streams.sample())
    finally:
        os.sched_setaffinity(0, allowed)


def _passed(path: PathCounters) -> int:
    return path.marked + path.unmarked


def _found(name: str, mtu: int, path: PathCounters, first: Sample, last: Sample) -> Lossy:
    return Lossy(
        name,
        mtu,
        path,
        last.retransmitted - first.retransmitted,
        last.dsacks - first.dsacks,
        last.reorderings - first.reorderings,
        sum(last.received) * 8e-9 / last.seconds,
    )


def show(found: Sequence[Lossy], limits: Limits) -> None:
    """The table."""
    lost = f"one data packet in {1 / limits.loss:,.0f} lost" if limits.loss else "none lost"
    ahead = f", headers {1e3 * limits.skew:g} ms behind" if limits.skew else ""
    print(f"\n{STREAMS} streams, {lost}, round trip {2e3 * limits.delay:g} ms{ahead}")
    print(
        f"  {'':<24} {'MTU':>5} {'packets':>10} {'headers':>8} {'runts':>7} {'lost':>5} {'queue':>6} "
        f"{'sent again':>10} {'DSACKs':>7} {'reordered':>9} {'Gbit/s':>7}"
    )
    for one in found:
        print(
            f"  {one.way:<24} {one.mtu:>5} {_passed(one.path):>10,} {one.path.marked / _passed(one.path):>8.1%} "
            f"{one.path.runts:>7,} {one.path.lost:>5} {one.path.queue_full:>6} {one.retransmitted:>10} "
            f"{one.dsacks:>7} {one.reorderings:>9} {one.gigabits_per_second:>7.3f}"
        )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m bench loss", description="duplicate-SACKs by way of marking")
    found.add_argument("--loss", type=float, default=LOSS, help="the chance of a data packet")
    found.add_argument("--delay", type=float, default=DELAY, help="seconds in each direction")
    found.add_argument("--skew", type=float, default=0.0, help="seconds that headers keep packets behind those without")
    found.add_argument("--packets", type=int, default=PACKETS, help="that come to the path, for each way")
    found.add_argument("--mtu", type=int, default=MTU)
    add_peers(found)
    found.add_argument("--json", action="store_true")
    return found


def main(arguments: Sequence[str] = ()) -> None:
    options = parser().parse_args(arguments)
    reason = "needs root" if os.geteuid() != 0 else probe()
    if reason is not None:
        print(f"\nthe bench of losses is left out: {reason}", file=sys.stderr)
        return
    limits = Limits(delay=options.delay, loss=options.loss, skew=options.skew)
    peers = peers_of(options)
    found = [transfer(name, options.mtu, options.packets, limits, peers) for name in (UNMARKED, *OURS, *peers)]
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found, limits)


if __name__ == "__main__":
    main(sys.argv[1:])
