"""gfal2 on bob, its command and its bindings, streamed and third party: the storages see the tag, and mark with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from scitags_core.gfal2 import plan
from scitags_core.tag import Tag, decode
from tests.netns.conftest import ALICE, BOB
from tests.real.peers import SYSTEM_PYTHON, peer_environment
from tests.xrootd.clients import run
from tests.xrootd.conftest import Site
from tests.xrootd.host import Agent
from tests.xrootd.moved import TAG, check_marked, content, sent

OCTETS = 8_000_123
ROOT = Path(__file__).parents[2]
BINDINGS = """
import sys
sys.path.insert(0, sys.argv[4])
import gfal2
from scitags_core.tag import decode
from scitags_core.gfal2 import tagged
context = gfal2.creat_context()
context.set_opt_boolean("HTTP PLUGIN", "INSECURE", True)
parameters = context.transfer_parameters()
parameters.overwrite = True
with tagged(context, sys.argv[1], sys.argv[2], decode(int(sys.argv[3])), parameters) as copy:
    context.filecopy(parameters, copy.source, copy.destination)
context.filecopy(parameters, sys.argv[1], sys.argv[2])
"""


@pytest.fixture(scope="module", autouse=True)
def gfal() -> None:
    if shutil.which("gfal-copy") is None:
        pytest.skip("needs Debian's gfal2-util-scripts and gfal2-plugin-file, -http and -xrootd")


def copy(site: Site, source: str, destination: str) -> None:
    """By the command that `scitags gfal copy` prints."""
    arguments = plan(source, destination, Tag(*decode(TAG))).arguments()
    # What is asked of third parties is authorised by a token; the storage here asks for none.
    environment = ["env", f"GFAL_PYTHONBIN={SYSTEM_PYTHON}", "BEARER_TOKEN=none"]
    run(site.pair.bob, [*environment, "gfal-copy", "-f", "-DHTTP PLUGIN:INSECURE=true", *arguments])


def check_one(agent: Agent, site: Site | None = None) -> None:
    """One transfer, of all octets, on however many connections, each with the tag; on the wire too."""
    (records,) = agent.transfers(1)
    assert {record.scitag for record in records} == {TAG}
    assert sum(sum(record.octets) for record in records if record.state == "end") == OCTETS
    if site is not None:
        seen = sent(site)
        starts = [record for record in records if record.state == "start"]
        # The data may go by another connection than the requests, and that is the one with most packets.
        most = max(starts, key=lambda start: sum(part.octets for part in seen[start.src_port, start.dst_port].values()))
        check_marked(seen, most, TAG)


@pytest.mark.parametrize("scheme", ["root", "davs"])
def test_a_download(site: Site, tmp_path: Path, scheme: str) -> None:
    site.alice.server.put("gfal-down", content(OCTETS))
    copy(site, site.alice.server.url(scheme, ALICE, "gfal-down"), f"file://{tmp_path}/here")
    assert (tmp_path / "here").read_bytes() == content(OCTETS)
    check_one(site.alice.agent, site)


@pytest.mark.parametrize("scheme", ["root", "davs"])
def test_an_upload(site: Site, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "here").write_bytes(content(OCTETS))
    copy(site, f"file://{tmp_path}/here", site.alice.server.url(scheme, ALICE, f"gfal-up-{scheme}"))
    assert (site.alice.server.root / f"gfal-up-{scheme}").read_bytes() == content(OCTETS)
    check_one(site.alice.agent)


@pytest.mark.parametrize("scheme", ["root", "davs"])
def test_a_third_party_copy(site: Site, scheme: str) -> None:
    """The storage that the octets come from has the tag; by HTTP also the one that is asked for the copy, and fetches
    them itself (by root it leaves that to an xrdcp of its own)."""
    site.bob.server.put("gfal-origin", content(OCTETS))
    source = site.bob.server.url(scheme, BOB, "gfal-origin")
    copy(site, source, site.alice.server.url(scheme, ALICE, f"gfal-third-{scheme}"))
    assert (site.alice.server.root / f"gfal-third-{scheme}").read_bytes() == content(OCTETS)
    check_one(site.bob.agent, site)
    if scheme != "root":
        check_one(site.alice.agent)


def test_the_bindings(site: Site) -> None:
    """Tagged within, and no longer afterwards."""
    site.bob.server.put("gfal-origin", content(OCTETS))
    source = site.bob.server.url("davs", BOB, "gfal-origin")
    destination = site.alice.server.url("davs", ALICE, "gfal-bindings")
    # The system's Python has gfal2, and need not be the one that these tests run with.
    python = peer_environment("gfal2", [], system_packages=True)
    environment = ["env", "BEARER_TOKEN=none"]
    run(site.pair.bob, [*environment, python, "-c", BINDINGS, source, destination, str(TAG), str(ROOT)])
    transfers = site.alice.agent.transfers(2)
    assert sorted({record.scitag for parts in transfers for record in parts}) == sorted({TAG, 65})
    assert os.path.getsize(site.alice.server.root / "gfal-bindings") == OCTETS  # noqa: PTH202
