"""A pool's host with a real agent that marks, and a client's host, where arrivals are watched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import pytest

from scitags_agent.client import AgentClient
from scitags_core.tag import Tag
from tests.agent.conftest import START_SECONDS, wait_for
from tests.dcache.pool import Download, Pool
from tests.netns.conftest import ALICE, BOB, Pair, bpf, hosts, pair, root
from tests.netns.namespaces import add_address
from tests.netns.watching import Seen
from tests.xrootd.host import MARKER, Agent

__all__ = ["bpf", "hosts", "pair", "root"]

CAROL = "2001:db8::3"  # another client
SOURCE = """
[[source]]
kind = "firefly"
dialect = "dcache"
"""


class Site(msgspec.Struct):
    """alice is the pool's host; bob and carol, whose address is at bob's host, are clients."""

    pair: Pair
    agent: Agent
    pool: Pool
    seen: Seen
    stack: ExitStack

    def download(self, tag: Tag | None, *, client: str = BOB) -> Download:
        one = Download(self.pool, self.pair.bob, client, tag)
        self.stack.callback(one.close)
        return one

    def status(self) -> dict[str, Any]:
        with AgentClient(str(self.agent.socket)) as client:
            return client.status()

    def matching(self) -> dict[str, int]:
        """What became of reports (Matcher.counters)."""
        return dict(self.status()["matching"])

    def marker(self) -> Counter[str]:
        """What the marker has counted."""
        return Counter(self.status()["backends"]["marker"])


@pytest.fixture
def site(pair: Pair, bpf: None) -> Iterator[Site]:
    """One whose kernels make no labels: what is not marked bears label 0."""
    with made(pair) as one:
        yield one


@pytest.fixture
def labelling_site(hosts: Pair, bpf: None) -> Iterator[Site]:
    """One whose kernels make labels, as they do unless told otherwise: the pool's can be asked for ours."""
    with made(hosts) as one:
        yield one


@contextmanager
def made(pair: Pair) -> Iterator[Site]:
    with ExitStack() as stack:
        add_address(pair.bob, "bob0", CAROL, 64)
        agent = Agent(pair.alice, backends=MARKER + SOURCE)
        stack.callback(agent.close)
        agent.start()
        wait_for(lambda: "fireflies are heard" in agent.log_text(), START_SECONDS, "an agent that hears fireflies")
        seen = Seen(pair.bob, "bob0")
        stack.callback(seen.close)
        yield Site(pair, agent, stack.enter_context(Pool(pair.alice, ALICE)), seen, stack)
