"""Which connections are put before the kernel, and when it is looked what became of them; the kernel stands in."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from scitags_agent import socket_labels
from scitags_agent.bpf.kernel_label import KernelLabels, SocketReport
from scitags_agent.socket_labels import SocketLabels, Wanted
from scitags_core.flow import FlowKey

MANY = 3 * socket_labels.PUTS_A_ROUND


class Kernel:
    """What it was given, and how often it was looked."""

    def __init__(self) -> None:
        self.labels: dict[bytes, int] = {}
        self.walks = 0
        self.is_closed = False

    def put(self, key: bytes, label: int) -> None:
        self.labels[key] = label

    def remove(self, key: bytes) -> None:
        del self.labels[key]

    def walk(self) -> list[SocketReport]:
        self.walks += 1
        return []

    def set_place(self, *_: int) -> None:
        assert not self.is_closed

    def close(self) -> None:
        self.is_closed = True


def flow(port: int) -> FlowKey:
    return FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094)


def test_short_transfers_cost_the_kernel_nothing_however_many_there_are() -> None:
    kernel = Kernel()
    under_way: set[FlowKey] = set()

    def wanted(name: FlowKey) -> Wanted | None:
        return ([str(name).encode()], 1) if name in under_way else None

    async def scenario() -> tuple[int, int]:
        labels = SocketLabels(cast("KernelLabels", kernel), [], wanted, lambda *_: None, lambda *_: None)
        await labels.start()
        for port in range(1, MANY + 1):
            labels.offer(flow(port))
        await asyncio.sleep(4 * socket_labels.PATIENCE_SECONDS)
        idle_walks = kernel.walks
        # All of them were looked at: one that lasts does not have to wait behind those that are over.
        under_way.add(flow(1))
        until = time.monotonic() + socket_labels.PATIENCE_SECONDS
        labels.offer(flow(1))
        await asyncio.sleep(socket_labels.PATIENCE_SECONDS / 2)
        early = len(kernel.labels)
        if time.monotonic() >= until:  # the machine is too busy to tell
            early = 0
        await asyncio.sleep(2 * socket_labels.PATIENCE_SECONDS)
        await labels.close(give_back=0)
        return idle_walks, early

    idle_walks, early = asyncio.run(scenario())
    assert idle_walks == 1  # the one at the start
    assert early == 0
    assert kernel.walks > 1
    assert kernel.labels == {str(flow(1)).encode(): 1}


def test_a_namespace_that_comes_as_it_ends_is_passed_over() -> None:
    kernel = Kernel()

    async def scenario() -> None:
        labels = SocketLabels(cast("KernelLabels", kernel), [], lambda _: None, lambda *_: None, lambda *_: None)
        await labels.start()
        labels.set_place(1, 2, 3)
        await labels.close(give_back=0)
        labels.set_place(1, 0, 0)

    asyncio.run(scenario())
