"""The ways of marking a live TCP connection, beside none: how many packets 1 GiB takes, and how fast it goes.

The label by the kernel (no program runs for any packet), the Destination Options header on the socket, and both; over
veth between two network namespaces, in turn. Packets are counted without segmentation by the device: each is one on the
wire then.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyroute2 import IPRoute

from scitags_agent.backends.extension_header import IPV6_DSTOPTS
from scitags_agent.bpf.kernel_label import KernelLabels, probe
from scitags_agent.bpf.layout import pack_key
from scitags_core import exthdr, label
from scitags_core.flow import FlowKey
from tests.netns.conftest import ALICE, BOB
from tests.netns.namespaces import Namespace, add_address, link, set_mtu, switch_off_segmentation

PORT = 1094
EXPERIMENT, ACTIVITY = 2, 15
GIBIBYTE = 1 << 30
ROUNDS = 7
MTUS = (1500, 9000)
WAYS = {
    "unmarked": (False, False),
    "label, by the kernel": (True, False),
    "Destination Options, on the socket": (False, True),
    "both": (True, True),
}
_ports = iter(range(20_000, 60_000))


@contextmanager
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        add_address(alice, "alice0", ALICE, 64)
        add_address(bob, "bob0", BOB, 64)
        yield alice, bob


def sent_packets(alice: Namespace) -> int:
    with alice.entered(), IPRoute() as netlink:
        statistics_of = netlink.get_links(ifname="alice0")[0].get("stats64")
        return int(statistics_of["tx_packets"])


def transfer(alice: Namespace, bob: Namespace, kernel: KernelLabels, way: str, octets: int) -> float:
    """Seconds for so many octets."""
    labelled, headed = WAYS[way]
    source = next(_ports)
    if labelled:
        kernel.put(pack_key(FlowKey.of(ALICE, source, BOB, PORT)).octets, label.encode(EXPERIMENT, ACTIVITY, 5))
    with bob.entered():
        server = socket.create_server((BOB, PORT), family=socket.AF_INET6)
    with alice.entered():
        client = socket.socket(socket.AF_INET6)
    with server, client:
        client.bind((ALICE, source))
        client.connect((BOB, PORT))
        if headed:
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, exthdr.encode(EXPERIMENT, ACTIVITY, 0))
        accepted, _ = server.accept()
        with accepted:
            chunk = bytes(1 << 20)

            def send() -> None:
                for _ in range(octets // len(chunk)):
                    client.sendall(chunk)

            sender = threading.Thread(target=send)
            began = time.perf_counter()
            sender.start()
            buffer, left = bytearray(1 << 20), octets
            while left:
                left -= accepted.recv_into(buffer)
            seconds = time.perf_counter() - began
            sender.join()
            return seconds


def main() -> None:
    reason = "needs root" if os.geteuid() != 0 else probe()
    if reason is not None:
        print(f"\nthe bench of ways to mark is left out: {reason}", file=sys.stderr)
        return
    with hosts() as (alice, bob):
        with alice.entered():
            kernel = KernelLabels(10_000)
        for mtu in MTUS:
            for host, interface in ((alice, "alice0"), (bob, "bob0")):
                set_mtu(host, interface, mtu)
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(ROUNDS):
                for way, found in speeds.items():
                    found.append(GIBIBYTE / transfer(alice, bob, kernel, way, GIBIBYTE))
            print(f"\n1 GiB over veth, MTU {mtu}, segmentation by the device, median of {ROUNDS} interleaved rounds")
            for way, found in speeds.items():
                ratio = statistics.median(one / zero for one, zero in zip(found, speeds["unmarked"], strict=True))
                print(f"  {way:<40} {statistics.median(found) * 8 / 1e9:>6.1f} Gbit/s   x {ratio:.3f}")
        switch_off_segmentation(alice, "alice0")
        for mtu in MTUS:
            for host, interface in ((alice, "alice0"), (bob, "bob0")):
                set_mtu(host, interface, mtu)
            print(f"\npackets for 1 GiB, MTU {mtu}, no segmentation by the device")
            base = 0
            for way in WAYS:
                before = sent_packets(alice)
                transfer(alice, bob, kernel, way, GIBIBYTE)
                packets = sent_packets(alice) - before
                base = base or packets
                print(f"  {way:<40} {packets:>10,}   {100 * (packets - base) / base:>+6.2f} %")
        kernel.close()


if __name__ == "__main__":
    main()
