"""Two storage hosts, each with an xrootd and an agent, and a network between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import msgspec
import pytest

from scitags_demo.authority import Authority
from scitags_demo.xrootd_plugin import Sanitizer
from tests.netns.conftest import ALICE, BOB, Pair, bpf, root
from tests.netns.namespaces import Namespace, add_address, link
from tests.netns.watching import Seen
from tests.xrootd.host import Host
from tests.xrootd.plugin import built

__all__ = ["bpf", "root"]

ALICE_IPV4, BOB_IPV4 = "192.0.2.1", "192.0.2.2"
RULES = """
scitags.wait 500
scitags.map path /mapped 3 14
scitags.map host 192.0.2.0/24 path /by-host 3 12
scitags.default 1 1
"""


class Site(msgspec.Struct):
    """alice and bob, and what passes between them as bob sees it. Clients run on bob unless said otherwise."""

    pair: Pair
    alice: Host
    bob: Host
    authority: Authority
    seen: Seen

    def forget(self) -> None:
        """What was before is another test's."""
        self.alice.agent.new_records()
        self.bob.agent.new_records()
        self.seen.words()


# "address" or "thread": the plug-in as the sanitizers of GCC build it (make test-sanitized).
SANITIZER = cast("Sanitizer", os.environ.get("SCITAGS_SANITIZER", ""))


@pytest.fixture(scope="session")
def authority() -> Iterator[Authority]:
    one = Authority()
    yield one
    one.close()


@pytest.fixture(scope="session")
def whole_site(root: None, bpf: None, request: pytest.FixtureRequest) -> Iterator[Site]:
    built(SANITIZER)
    authority: Authority = request.getfixturevalue("authority")
    with ExitStack() as stack:
        alice = stack.enter_context(Namespace("alice"))
        bob = stack.enter_context(Namespace("bob"))
        link(alice, "alice0", bob, "bob0")
        addresses = {"alice": (ALICE, ALICE_IPV4), "bob": (BOB, BOB_IPV4)}
        hosts: list[Host] = []
        for host, name in ((alice, "alice"), (bob, "bob")):
            for address, prefix in zip(addresses[name], (64, 24), strict=True):
                add_address(host, f"{name}0", address, prefix)
            # Unmarked packets then bear label 0, so that "untouched" can be told exactly.
            host.set_sysctl("ipv6/auto_flowlabels", "0")
            hosts.append(Host(authority, host, addresses[name], lines=RULES, sanitizer=SANITIZER))
            stack.callback(hosts[-1].close)
            hosts[-1].start()
        seen = Seen(bob, "bob0")
        stack.callback(seen.close)
        yield Site(Pair(alice, bob), hosts[0], hosts[1], authority, seen)


@pytest.fixture
def site(whole_site: Site) -> Site:
    whole_site.forget()
    return whole_site
