"""A pool's host with a real agent that marks, and a client's host, where arrivals are watched."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_agent.client import AgentClient
from scitags_core import label
from scitags_core.tag import Tag
from tests.agent.conftest import START_SECONDS, wait_for
from tests.dcache.pool import Download, Pool
from tests.netns.conftest import ALICE, BOB, Pair, bpf, hosts, pair, root
from tests.netns.namespaces import add_address
from tests.netns.watching import Seen
from tests.xrootd.host import MARKER, Agent

__all__ = ["bpf", "hosts", "pair", "root"]

MATCH_SECONDS = 3.0
STATUS_SECONDS = 10.0
REREAD = "the configuration has been read again"
HEARD = "fireflies are heard"
CAROL = "2001:db8::3"  # another client
PRODUCTION, ANALYSIS = Tag(2, 15), Tag(3, 14)
_OURS = {label.encode(*tag, entropy): tag for tag in (PRODUCTION, ANALYSIS) for entropy in range(label.ENTROPY_MAX + 1)}
TABLE = f"""
[table]
match_seconds = {MATCH_SECONDS}
"""
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

    def start(self) -> None:
        heard = self.agent.log_text().count(HEARD) if self.agent.process else 0
        self.agent.start()
        wait_for(lambda: self.agent.log_text().count(HEARD) > heard, START_SECONDS, "an agent that hears fireflies")

    def download(self, tag: Tag | None, *, client: str = BOB) -> Download:
        one = Download(self.pool, self.pair.bob, client, tag)
        self.stack.callback(one.close)
        return one

    def tags(self) -> dict[tuple[int, int], list[Tag | None]]:
        """Of the packets with data that have come since the last look, by their ports.

        None where it is not one of ours: a kernel may draw labels of its own.
        """
        found: dict[tuple[int, int], list[Tag | None]] = {}
        for packet in self.seen.packets():
            if packet.octets:
                found.setdefault(packet.ports, []).append(_OURS.get(packet.word & label.LABEL_MAX))
        return found

    @property
    def pipe(self) -> Path:
        return self.agent.directory / "flowd"

    def expects(self, expectations: int) -> None:
        """Return when the marker has expected so many connections; that is before they come."""
        wait_for(lambda: self.marker()["expected"] >= expectations, what="an expectation")

    def reload(self) -> None:
        """Have the agent read its configuration again."""
        assert self.agent.process is not None
        self.agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: REREAD in self.agent.log_text(), what="the new configuration")

    def status(self) -> dict[str, Any]:
        with AgentClient(str(self.agent.socket)) as client:
            return client.status(timeout=STATUS_SECONDS)

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
def labelling_site(hosts: Pair, bpf: None, request: pytest.FixtureRequest) -> Iterator[Site]:
    """One whose kernels make labels, as they do unless told otherwise: the pool's can be asked for ours.

    With label = "auto", or what is asked for.
    """
    with made(hosts, getattr(request, "param", "auto")) as one:
        yield one


@contextmanager
def made(pair: Pair, label_by: str = "auto") -> Iterator[Site]:
    with ExitStack() as stack:
        add_address(pair.bob, "bob0", CAROL, 64)
        agent = Agent(pair.alice, backends=f'{TABLE}{MARKER}label = "{label_by}"\n{SOURCE}')
        stack.callback(agent.close)
        with agent.config.open("a") as config:
            config.write(f'[[source]]\nkind = "named_pipe"\npath = "{agent.directory}/flowd"\n')
        seen = Seen(pair.bob, "bob0")
        stack.callback(seen.close)
        one = Site(pair, agent, stack.enter_context(Pool(pair.alice, ALICE)), seen, stack)
        one.start()
        yield one
