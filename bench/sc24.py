"""The demonstration of Supercomputing 2024, here: parallel streams, unmarked, then labelled, then with headers.

    python -m bench sc24 [--seconds N] [--streams N] [--seed N] [--mtu N] [--repeats N] [--path] [--rate PACKETS]
        [--peer-label FILE --peer-header FILE] [--picture STEM] [--observe DIRECTORY] [--json]

Each stream has an experiment and an activity that the seed draws from the registry. The same connections go on through
three equal parts; marks are put on and taken off between them, and what happens in the first seconds of a part is left
out. Bandwidth, processors, packets, what was sent again, duplicate-SACKs and congestion windows are taken four times a
second. The contenders, ours and a peer's where its objects are given, take turns.

Without --path the hosts are joined by veth, where the processors are the limit. With it there is a bottleneck between
them that forwards so many packets a second, with delay (bench/path_box.c), as a router or a receiver has.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec

from bench.children import wait_until
from bench.look import Look, Marks
from bench.paths import RECEIVING, SENDING, Joined, Limits, PathCounters, joined
from bench.speed import add_peers, peers_of
from bench.streams import Sample, Streams
from bench.ways import OURS, PEER_HEADER, PEER_LABEL, Kind, Way, opened
from scitags_agent.bpf.kernel_label import probe
from scitags_core import registry_history
from scitags_core.label import EXPERIMENT_MAX
from scitags_core.tag import Tag

SECONDS, STREAMS, SEED, MTU = 10.0, 16, 2024, 9000
SETTLING_SECONDS = 2.0
LOOK_SECONDS = 0.3  # at the end of the settling
SAMPLE_SECONDS = 0.25
DELAY, PACKETS_PER_SECOND, QUEUE = 0.01, 10_000.0, 300
# The kernel makes its packets for the device as large as a millisecond's worth of the stream, 64 KB at most, which the
# streams of the demonstration reached: 7 segments at MTU 9000. By itself it would make them 2 at the pace of this path.
BURST = 7
UNMARKED = "unmarked"
CONTENDERS: Mapping[str, tuple[str, ...]] = {
    "sockets": (UNMARKED, "label, by the kernel", "header, on the socket"),
    "tc": (UNMARKED, "label, at tc", "header, at tc"),
    "peer": (UNMARKED, PEER_LABEL, PEER_HEADER),
}
TITLES = {
    "sockets": "ours, on sockets, by the kernel",
    "tc": "ours, at tc",
    "peer": "a peer's, at tc",
}
OBSERVER_SECONDS = 20.0


class Part(msgspec.Struct, frozen=True):
    """One of the three, without its settling. Shares are 0 to 1; ratio is of the run's unmarked part.

    busy, softirq   of the whole machine's processors
    packets         a second, by the sender's interface
    retransmitted   and the others: over the whole of what was measured
    window_spread   the standard deviation of the streams' windows together over their mean: a sawtooth shows here
    """

    way: str
    kind: Kind
    begin: float
    end: float
    gigabits_per_second: float
    ratio: float
    busy: float
    softirq: float
    packets: float
    retransmitted: int
    dsacks: int
    reorderings: int
    window_spread: float
    marks: Marks
    path: PathCounters


class Run(msgspec.Struct, frozen=True):
    """One contender, once."""

    contender: str
    repetition: int
    parts: tuple[Part, ...]
    samples: tuple[Sample, ...]


class Found(msgspec.Struct, frozen=True):
    """All that was measured."""

    seed: int
    tags: tuple[Tag, ...]
    mtu: int
    limits: Limits | None
    burst: int
    runs: tuple[Run, ...]


def drawn_tags(seed: int, count: int) -> tuple[Tag, ...]:
    """So many of the registry's that fit a flow label; the same from the same seed."""
    registry = registry_history.built_in().registry()
    tags = sorted(tag for tag in registry.tags() if tag.experiment <= EXPERIMENT_MAX)
    return tuple(random.Random(seed).choices(tags, k=count))


class Span(msgspec.Struct, frozen=True):
    """What is measured of a part: from when to when by samples' seconds, what packets bore, what the path saw."""

    begin: float
    end: float
    marks: Marks
    path: PathCounters


def run(
    contender: str, names: Sequence[str], repetition: int, tags: Sequence[Tag], settings: argparse.Namespace
) -> Run:
    """One contender on hosts of its own. Raises MarkerUnavailable, PathUnavailable, OSError."""
    allowed = os.sched_getaffinity(0)
    try:
        with ExitStack() as stack:
            hosts = stack.enter_context(joined(settings.mtu, limits_of(settings)))
            if hosts.box is not None:
                hosts.alice.set_sysctl("ipv4/tcp_min_tso_segs", str(settings.burst))
            ways = opened(stack, names, hosts.alice, SENDING, peers_of(settings))
            if settings.observe:
                stack.enter_context(_observer(hosts, settings.observe / f"{contender}-{repetition}.jsonl"))
            streams = stack.enter_context(Streams(hosts, tags))
            samples = [streams.sample()]
            spans = [_part(hosts, streams, way, settings.seconds, samples) for way in ways.values()]
    finally:
        os.sched_setaffinity(0, allowed)
    parts = _parts(tuple(ways.items()), spans, samples)
    return Run(contender, repetition, parts, tuple(samples))


def _part(hosts: Joined, streams: Streams, way: Way, seconds: float, samples: list[Sample]) -> Span:
    """Marks are on meanwhile; samples are added to."""
    settled = time.monotonic() + min(SETTLING_SECONDS, seconds)
    way.put_on(streams.streams)
    _sample_until(settled - LOOK_SECONDS, streams, samples)
    look = Look(hosts.bob, RECEIVING)
    marks = look.at(streams.streams, way.kind, seconds=LOOK_SECONDS)
    look.close()
    wait_until(settled)
    begin, before = streams.sample(), hosts.counters()
    samples.append(begin)
    _sample_until(time.monotonic() + seconds, streams, samples)
    path = hosts.counters().since(before)
    way.take_off(streams.streams)
    return Span(begin.seconds, samples[-1].seconds, marks, path)


def _sample_until(end: float, streams: Streams, samples: list[Sample]) -> None:
    moment = time.monotonic()
    while moment < end:
        moment = min(moment + SAMPLE_SECONDS, end)
        wait_until(moment)
        samples.append(streams.sample())


def _parts(ways: Sequence[tuple[str, Way]], spans: Sequence[Span], samples: Sequence[Sample]) -> tuple[Part, ...]:
    found: list[Part] = []
    for (name, way), span in zip(ways, spans, strict=True):
        inside = [one for one in samples if span.begin <= one.seconds <= span.end]
        first, last = inside[0], inside[-1]
        seconds = last.seconds - first.seconds
        speed = (sum(last.received) - sum(first.received)) * 8 / 1e9 / seconds
        busy, softirq = processor_shares(first, last)
        windows = [one.window for one in inside]
        found.append(
            Part(
                way=name,
                kind=way.kind,
                begin=span.begin,
                end=span.end,
                gigabits_per_second=speed,
                ratio=speed / (found[0].gigabits_per_second if found else speed),
                busy=busy,
                softirq=softirq,
                packets=(last.packets - first.packets) / seconds,
                retransmitted=last.retransmitted - first.retransmitted,
                dsacks=last.dsacks - first.dsacks,
                reorderings=last.reorderings - first.reorderings,
                window_spread=statistics.pstdev(windows) / statistics.mean(windows),
                marks=span.marks,
                path=span.path,
            )
        )
    return tuple(found)


def processor_shares(first: Sample, last: Sample) -> tuple[float, float]:
    """Of the time between two samples: what was not idle, and what was softirq; 0 to 1."""
    one, other = first.processors, last.processors
    total = (other.total - one.total) or 1.0
    return 1 - (other.idle - one.idle) / total, (other.softirq - one.softirq) / total


def speeds(samples: Sequence[Sample]) -> list[tuple[float, float, float]]:
    """Beginning, end, and Gbit/s of each interval between two samples."""
    return [
        (one.seconds, other.seconds, (sum(other.received) - sum(one.received)) * 8e-9 / (other.seconds - one.seconds))
        for one, other in pairwise(samples)
        if other.seconds > one.seconds
    ]


@contextmanager
def _observer(hosts: Joined, output: Path) -> Iterator[None]:
    """`scitags observe` where the packets arrive: bandwidth by tag, by someone who knows only the registry.

    Beside the lines there is the picture, in the flow label and in headers.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    ready = output.with_suffix(".ready")
    scitags = ["-c", "import sys; from scitags_core.cli import main; sys.exit(main())"]
    command = [*scitags, "observe", "--interface", RECEIVING, "--direction", "in", "--bucket", "0.5"]
    observer = hosts.bob.popen(
        [
            sys.executable,
            *command,
            *("--json-lines", "--output", str(output), "--ready", str(ready)),
            *("--picture", str(output.with_suffix(".png"))),
        ],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + OBSERVER_SECONDS
    try:
        while not ready.exists() and observer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        observer.terminate()
        try:
            observer.wait(OBSERVER_SECONDS)
        finally:
            observer.kill()
            ready.unlink(missing_ok=True)


def show(found: Found) -> None:
    """The table."""
    between = "veth" if found.limits is None else f"a path of {found.limits.packets_per_second:,.0f} packets a second"
    print(f"\n{len(found.tags)} streams over {between}, MTU {found.mtu}, tags drawn with seed {found.seed}")
    print("  " + " ".join(f"{one.experiment}/{one.activity}" for one in found.tags))
    for contender in dict.fromkeys(one.contender for one in found.runs):
        runs = [one for one in found.runs if one.contender == contender]
        print(f"\n  {TITLES[contender]}" + (f", medians of {len(runs)} runs" if len(runs) > 1 else ""))
        print(
            f"    {'':<24} {'Gbit/s':>7} {'ratio':>6} {'busy':>5} {'softirq':>7} {'packets/s':>10} "
            f"{'runts':>8} {'sent again':>10} {'DSACKs':>7} {'reordered':>9} {'window':>7} {'marked':>7}"
        )
        for parts in zip(*(one.parts for one in runs), strict=True):
            print(f"    {parts[0].way:<24}" + _line(parts))


def _line(parts: Sequence[Part]) -> str:
    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in parts))

    right = sum(one.marks.right for one in parts) / max(1, sum(one.marks.packets for one in parts))
    return (
        f" {median('gigabits_per_second'):>7.3f} {median('ratio'):>6.3f} {median('busy'):>5.0%} "
        f"{median('softirq'):>7.0%} {median('packets'):>10,.0f} "
        f"{statistics.median(one.path.runts for one in parts):>8,.0f} {median('retransmitted'):>10,.0f} "
        f"{median('dsacks'):>7,.0f} {median('reorderings'):>9,.0f} {median('window_spread'):>7.1%} "
        + (f"{right:>7.1%}" if parts[0].kind != "none" else f"{'-':>7}")
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m bench sc24", description="the demonstration of SC24, here")
    found.add_argument("--seconds", type=float, default=SECONDS, help="of each of the three parts, settling apart")
    found.add_argument("--streams", type=int, default=STREAMS)
    found.add_argument("--seed", type=int, default=SEED, help="draws the tags")
    found.add_argument("--mtu", type=int, default=MTU)
    found.add_argument("--repeats", type=int, default=1)
    found.add_argument("--path", action="store_true", help="a path with limits between the hosts, not veth")
    found.add_argument("--rate", type=float, default=PACKETS_PER_SECOND, help="packets a second of that path")
    found.add_argument("--queue", type=int, default=QUEUE, help="packets that wait there at most")
    found.add_argument("--delay", type=float, default=DELAY, help="seconds in each direction")
    found.add_argument("--burst", type=int, default=BURST, help="segments that the kernel hands over at once, at least")
    found.add_argument("--skew", type=float, default=0.0, help="seconds that headers keep packets behind those without")
    found.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    add_peers(found)
    found.add_argument("--picture", type=Path, metavar="STEM", help="write STEM.png and STEM.svg (needs matplotlib)")
    found.add_argument(
        "--observe", type=Path, metavar="DIRECTORY", help="`scitags observe --json-lines` beside each run"
    )
    found.add_argument("--again", type=Path, metavar="FILE", help="show what --json wrote; measure nothing")
    found.add_argument("--json", action="store_true")
    return found


def limits_of(settings: argparse.Namespace) -> Limits | None:
    """The path's; None for veth."""
    if not settings.path:
        return None
    return Limits(
        delay=settings.delay,
        packets_per_second=settings.rate,
        queue=settings.queue,
        skew=settings.skew,
        seed=settings.seed,
    )


def contenders(peers: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """Those that can run here: ours, and a peer's where both its objects are given."""
    can = {UNMARKED, *OURS, *peers}
    return {name: ways for name, ways in CONTENDERS.items() if can.issuperset(ways)}


def measured(settings: argparse.Namespace) -> Found:
    """All contenders in turn. Raises MarkerUnavailable, PathUnavailable, OSError."""
    tags = drawn_tags(settings.seed, settings.streams)
    runs = [
        run(name, ways, repetition, tags, settings)
        for repetition in range(settings.repeats)
        for name, ways in contenders(peers_of(settings)).items()
        if not settings.contenders or name in settings.contenders
    ]
    return Found(settings.seed, tags, settings.mtu, limits_of(settings), settings.burst, tuple(runs))


def main(arguments: Sequence[str] = ()) -> None:
    settings = parser().parse_args(arguments)
    reason = "needs root" if os.geteuid() != 0 else probe()
    if reason is not None:
        print(f"\nthe bench of SC24 is left out: {reason}", file=sys.stderr)
        return
    found = msgspec.json.decode(settings.again.read_bytes(), type=Found) if settings.again else measured(settings)
    if settings.picture:
        from bench.sc24_picture import draw  # noqa: PLC0415  # it needs matplotlib

        draw(found, settings.picture)
    if settings.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
