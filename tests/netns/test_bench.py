"""The benches of marking: each way marks what it says and takes it back, and what they tell is of what has been."""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import agent, downloads, loss, sc24, speed
from bench.look import Look
from bench.paths import RECEIVING, SENDING, Limits, PathCounters, joined
from bench.resampling import median_of
from bench.sc24_picture import draw
from bench.streams import Streams
from bench.ways import OURS, PEER_LABEL, Kind, opened
from scitags_agent.bpf import kernel_label
from scitags_core.tag import Tag

# A peer's object in little: the names and the layout that bench/peer.py speaks of.
PEER = r"""
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u64 high, low;
	__u32 dport, sport;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct key);
	__type(value, __u32);
} flowLabels SEC(".maps");

SEC("tc")
int marker(struct __sk_buff *skb)
{
	struct ipv6hdr ip;
	struct tcphdr tcp;
	struct key key = {};
	__u32 *label, word;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(ip), &tcp, sizeof(tcp)))
		return 0;
	key.high = bpf_be64_to_cpu(*(__u64 *)&ip.daddr);
	key.low = bpf_be64_to_cpu(*((__u64 *)&ip.daddr + 1));
	key.dport = bpf_ntohs(tcp.dest);
	key.sport = bpf_ntohs(tcp.source);
	label = bpf_map_lookup_elem(&flowLabels, &key);
	if (!label)
		return 0;
	word = bpf_htonl(0x60000000 | *label);
	bpf_skb_store_bytes(skb, ETH_HLEN, &word, sizeof(word), 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
"""
TAGS = (Tag(2, 15), Tag(3, 14))


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("clang") is None:
        pytest.skip("needs clang: compiles a peer's program")
    directory = tmp_path_factory.mktemp("peer")
    source, compiled = directory / "peer.bpf.c", directory / "peer.bpf.o"
    source.write_text(PEER)
    headers = f"-I/usr/include/{platform.machine()}-linux-gnu"
    subprocess.run(["clang", "-g", "-O2", "-target", "bpf", headers, "-c", source, "-o", compiled], check=True)
    return compiled


@pytest.fixture
def kernel(bpf: None) -> None:
    reason = kernel_label.probe()
    if reason is not None:
        pytest.skip(f"needs a kernel that writes labels: {reason}")


@pytest.mark.parametrize("name", [*OURS, PEER_LABEL])
def test_a_way_marks_every_packet_and_takes_it_back(kernel: None, peer: Path, name: str) -> None:
    with ExitStack() as stack:
        hosts = stack.enter_context(joined(1500))
        way = opened(stack, [name], hosts.alice, SENDING, {PEER_LABEL: peer})[name]
        streams = stack.enter_context(Streams(hosts, TAGS, octets_per_second=4_000_000))
        kinds: list[Kind] = ["none", way.kind, "none"]
        for kind, change in zip(kinds, (None, way.put_on, way.take_off), strict=True):
            if change is not None:
                change(streams.streams)
            time.sleep(0.4)
            look = Look(hosts.bob, RECEIVING)
            marks = look.at(streams.streams, kind, seconds=0.3)
            look.close()
            assert marks.packets > 20
            assert marks.right == marks.packets, (name, kind, marks)


def settings(**changed: object) -> argparse.Namespace:
    chosen = sc24.parser().parse_args(["--seconds", "1", "--streams", "3", "--path", "--rate", "3000"])
    vars(chosen).update(changed)
    return chosen


def test_three_parts_their_marks_and_their_picture(kernel: None, tmp_path: Path) -> None:
    found = sc24.measured(settings(contenders=["sockets"]))
    (run,) = found.runs
    assert [part.kind for part in run.parts] == ["none", "label", "header"]
    assert len(found.tags) == 3
    for part in run.parts:
        assert 0.8 < part.end - part.begin < 2.0
        # The bottleneck lets 3,000 packets of 9,000 octets pass in a second.
        assert 0.05 < part.gigabits_per_second < 0.25
        assert 0 < part.busy <= 1
        assert part.marks.right == part.marks.packets > 20
        assert (part.path.marked > 0) is (part.kind == "header")
        assert part.path.no_room == 0
    assert [(path.suffix, path.stat().st_size > 10_000) for path in draw(found, tmp_path / "picture")] == [
        (".png", True),
        (".svg", True),
    ]


def test_the_same_seed_draws_the_same_tags() -> None:
    assert sc24.drawn_tags(7, 16) == sc24.drawn_tags(7, 16) != sc24.drawn_tags(8, 16)


def test_losses_are_repaired_once_with_headers_on_sockets(kernel: None) -> None:
    limits = Limits(delay=0.001, loss=0.01)
    found = loss.transfer("header, on the socket", 9000, 3000, limits, {})
    assert found.path.marked >= 3000
    assert found.path.unmarked == 2 * loss.STREAMS  # what opens a connection, before it is marked
    assert found.path.lost > 5
    assert found.retransmitted >= found.path.lost - 4  # the last may still be on their way


def test_speeds_are_told_beside_the_same_connection_without_its_mark(kernel: None) -> None:
    found = {one.way: one for one in speed.measured(speed.Plan(rounds=2, connections=2), 1500)}
    assert list(found) == list(speed.WAYS)
    sizes = {way: one.segment_octets for way, one in found.items()}
    assert sizes == {way: 1420 if way.startswith("header") else 1428 for way in speed.WAYS}
    assert all(one.gigabits_per_second > 0 for one in found.values())


def test_downloads_by_each_way_bear_what_it_puts_on_them(kernel: None) -> None:
    with downloads.sites(0.005) as there:
        found = downloads.measure(4, 1_000_000, there)
    assert {way: one.passed.marked > 0 for way, one in found.items()} == {
        way: way == "header" for way in downloads.WAYS
    }
    for one in found.values():
        assert len(one.seconds) == 4
        assert min(one.seconds) > 4 * 0.005  # of a connection and its first octets
        assert one.passed.marked + one.passed.unmarked > 4 * 1_000_000 / 1428


def test_an_interval_holds_the_median_and_narrows() -> None:
    few, many = median_of([1.0, 2.0, 3.0, 4.0, 5.0]), median_of([1.0, 2.0, 3.0, 4.0, 5.0] * 40)
    assert few.low <= few.median == 3.0 <= few.high
    assert many.high - many.low < few.high - few.low


def test_counters_of_a_path_are_told_by_difference() -> None:
    assert PathCounters(marked=5, lost=3).since(PathCounters(marked=2, lost=3)) == PathCounters(marked=3)


def test_the_bench_of_the_agent_counts_every_firefly_and_looks_at_marks(bpf: None) -> None:
    with agent.stage("tc") as one:
        found = one.run(4000, 1)
        assert (found.events, found.arrived) == (4000, 4000)
        assert found.witnessed is not None
        assert found.witnessed.seen == found.witnessed.strangers > 0
        assert (found.witnessed.wrong, found.witnessed.strangers_marked) == (0, 0)
        paced = one.run(1000, 1, seconds=2)
        assert paced.events == paced.arrived
        assert len(paced.delays) == 2 * agent.TIMED_A_SECOND
