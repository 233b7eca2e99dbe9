"""From Rucio's configuration to the packets: what a storage hears in the request is what an observer decodes.

rucio.cfg -> the client's request -> xrootd -> its firefly -> the agent -> the flow label on the storage's packets
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_core import label
from scitags_core.tag import Tag
from tests.agent.conftest import START_SECONDS, STOP_SECONDS, wait_for
from tests.netns.conftest import ALICE, Pair, bpf, pair, root
from tests.netns.watching import Seen
from tests.rucio.instance import Rucio
from tests.rucio.site import TAGGED, Site
from tests.rucio.storage import Place, Storage, why_not

__all__ = ["bpf", "pair", "root"]

OCTETS = 40_000_000
AGENT = """
[[source]]
kind = "firefly"
listen = ["127.0.0.1:{port}"]

[[source]]
kind = "unix"
path = "{socket}"

[[backend]]
kind = "marker"
"""


@pytest.fixture
def agent(pair: Pair, bpf: None, tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Starts an agent on alice that hears fireflies on a port and marks alice's packets."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> None:
        config, socket = tmp_path / "agent.toml", tmp_path / "agent.sock"
        config.write_text(AGENT.format(port=port, socket=socket))
        with (tmp_path / "agent.log").open("wb") as log:
            command = [sys.executable, "-m", "scitags_agent", "--config", str(config)]
            started.append(pair.alice.popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        wait_for(socket.exists, START_SECONDS, "the agent's socket")

    yield start
    for process in started:
        process.terminate()
        process.wait(STOP_SECONDS)


def test_the_packets_of_a_download_bear_the_label_of_its_activity(
    pair: Pair,
    newest: Rucio,
    database: Callable[..., Path],
    agent: Callable[[int], None],
    tmp_path: Path,
) -> None:
    if why_not():
        pytest.skip(f"needs {why_not()}")
    storage = Storage(newest, Place(f"[{ALICE}]", pair.alice))
    try:
        site = Site(newest, database(newest, "def"), tmp_path, storage, Place("127.0.0.1", pair.bob))
        try:
            client = site.client(TAGGED)
            client.move([client.upload("XRD", "file", OCTETS)])
            agent(storage.hand_over())
            seen = Seen(pair.bob, "bob0")
            client.move([client.download("XRD", "file")])
            labels = seen.words()
            seen.close()
        finally:
            site.close()
    finally:
        storage.close()
    port = storage.root_port
    found = [
        (label.decode(word & 0xFFFFF).tag, count)
        for (source, _), words in labels.items()
        if source == port
        for word, count in words.items()
        if word & 0xFFFFF
    ]
    total = sum(sum(words.values()) for (source, _), words in labels.items() if source == port)
    assert {tag for tag, _ in found} == {Tag(2, 23)}
    assert sum(count for _, count in found) > total / 2
