"""What DIRAC's own gfal2 storage moves on bob bears the VO's tag at the storages; there is no other network there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dirac.conftest import PEER, dirac
from tests.netns.conftest import ALICE, BOB
from tests.xrootd.clients import run
from tests.xrootd.conftest import Site
from tests.xrootd.moved import content

__all__ = ["dirac"]

OCTETS = 1_000_123


def move(site: Site, python: Path, source: str, destination: str) -> None:
    environment = ["env", "BEARER_TOKEN=none", "SCITAGS_DIRAC_ACTIVITY=Production Input"]
    run(site.pair.bob, [*environment, python, PEER / "move.py", "atlas", source, destination])


@pytest.mark.parametrize("scheme", ["root", "davs"])
def test_direct_transfers(site: Site, dirac: Path, tmp_path: Path, scheme: str) -> None:  # the fixture
    (tmp_path / "here").write_bytes(content(OCTETS))
    there = site.alice.server.url(scheme, ALICE, f"dirac-{scheme}")
    move(site, dirac, f"file://{tmp_path}/here", there)
    move(site, dirac, there, f"file://{tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == content(OCTETS)
    records = [record for parts in site.alice.agent.transfers(2) for record in parts]
    assert {record.scitag for record in records} == {143}
    move(site, dirac, there, site.bob.server.url(scheme, BOB, f"dirac-replica-{scheme}"))
    assert (site.bob.server.root / f"dirac-replica-{scheme}").read_bytes() == content(OCTETS)
    (parts,) = site.alice.agent.transfers(1)
    assert {record.scitag for record in parts} == {143}
