"""What the tests with a real kernel need, and the two hosts that they have."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
import pytest

from scitags_agent.bpf import kernel_label
from scitags_agent.bpf.loader import MarkerProgram, probe
from tests.netns.namespaces import Namespace, add_address, link

if TYPE_CHECKING:
    from tests.netns.watching import Seen

ALICE = "2001:db8::1"
BOB = "2001:db8::2"


class Pair(msgspec.Struct):
    """Two hosts, joined by a veth pair: alice's end is alice0, bob's bob0."""

    alice: Namespace
    bob: Namespace

    def connect(self, source_port: int, *, port: int = 1094) -> tuple[socket.socket, socket.socket]:
        """A connection from alice to bob; alice's socket and bob's."""
        with self.bob.entered():
            server = socket.create_server((BOB, port), family=socket.AF_INET6)
        with self.alice.entered():
            client = socket.socket(socket.AF_INET6)
        with server:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((ALICE, source_port))
            client.settimeout(20)
            client.connect((BOB, port))
            accepted, _ = server.accept()
        accepted.settimeout(20)
        return client, accepted


@pytest.fixture(scope="session")
def root() -> None:
    """Skips where namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")


@pytest.fixture(scope="session")
def bpf(root: None) -> None:
    """Skips where the kernel takes no eBPF program."""
    reason = probe()
    if reason is not None:
        pytest.skip(f"needs eBPF: {reason}")


@pytest.fixture
def pair(root: None) -> Iterator[Pair]:
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        for host, interface, address in ((alice, "alice0", ALICE), (bob, "bob0", BOB)):
            add_address(host, interface, address, 64)
            # Unmarked packets then bear label 0, so that "untouched" can be told exactly.
            host.set_sysctl("ipv6/auto_flowlabels", "0")
        yield Pair(alice, bob)


@pytest.fixture
def hosts(pair: Pair, bpf: None) -> Pair:
    """Two hosts whose kernels make labels of hashes, as they do unless told otherwise."""
    for host in (pair.alice, pair.bob):
        host.set_sysctl("ipv6/auto_flowlabels", "1")
    with pair.alice.entered():
        reason = kernel_label.probe()
    if reason is not None:
        pytest.skip(f"needs a kernel that labels by itself: {reason}")
    return pair


@pytest.fixture(params=["in place", "by helper", "one by one"])
def program(bpf: None, request: pytest.FixtureRequest) -> Iterator[MarkerProgram]:
    """Both of its objects: what writes labels where the packet lies, and what asks the kernel to.

    And its table as this process writes it, one flow after another, where the kernel cannot do it for us.
    """
    in_place, in_batches = request.param != "by helper", request.param != "one by one"
    loaded = MarkerProgram(max_flows=64, in_place=in_place, in_batches=in_batches)
    assert (loaded.why_not_in_place is None) == in_place
    assert (loaded.why_not_in_batches is None) == in_batches
    yield loaded
    loaded.close()


@pytest.fixture
def seen(pair: Pair) -> Iterator[Seen]:
    """What arrives at bob's end."""
    from tests.netns.watching import Seen  # it imports this module

    one = Seen(pair.bob, "bob0")
    yield one
    one.close()
