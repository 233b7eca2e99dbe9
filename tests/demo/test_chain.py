"""From a Rucio rule to the wire, on real parts: whole, and with links that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scitags_core.cli import main
from scitags_core.registry_client import built_in
from scitags_demo.chain import report
from scitags_demo.chain import run as chain_run
from scitags_demo.chain.join import join
from scitags_demo.chain.plan import USER_ACTIVITY, Plan, Transfer
from scitags_demo.chain.run import Options
from tests.netns.conftest import bpf, root

__all__ = ["bpf", "root"]

REGISTRY = built_in().registry
MEGABYTE = 1_000_000


def ruled(name: str, octets: int, by: Any, vo: str, activity: str, source: Any, begin: float = 0.0) -> Transfer:
    east_or_west: Any = "west" if source == "east" else "east"
    return Transfer(name, octets, begin, by, vo, activity, f"{vo}.{activity}", source, east_or_west)


# Each way by which FTS moves a file, both directions, both VOs, wrong case, an activity that is not listed; users.
SMALL = Plan(
    (
        ruled("a1", 3 * MEGABYTE, "fts-gfal2", "atl", "Production Input", "west"),
        ruled("a2", 3 * MEGABYTE + 1, "fts-copy", "atl", "production INPUT", "east", 0.1),
        ruled("a3", 3 * MEGABYTE + 2, "fts-xrdcp", "atl", "T0 Export", "east"),
        ruled("a4", 3 * MEGABYTE + 3, "fts-copy", "atl", "No Such Activity", "west", 0.2),
        ruled("c1", 3 * MEGABYTE + 4, "fts-copy", "cms", "Production Input", "west", 0.4),
        ruled("c2", 3 * MEGABYTE + 5, "fts-copy", "cms", "Production Input", "west", 0.6),
        ruled("c3", 3 * MEGABYTE + 6, "fts-xrdcp", "cms", "Analysis Input", "west"),
        ruled("c4", 3 * MEGABYTE + 7, "fts-copy", "cms", "Data Rebalancing", "east", 0.8),
        Transfer("u1", 3 * MEGABYTE + 8, 1.0, "rucio", "cms", USER_ACTIVITY),
        Transfer("n1", 3 * MEGABYTE + 9, 0.5, "xrdcp"),
        Transfer("k1", 3 * MEGABYTE + 10, 1.0, "curl", "cms", "Analysis Input", visit="kept"),
        Transfer("k2", 4 * MEGABYTE + 11, 1.0, "curl", "atl", "Express", visit="kept"),
    )
)
TAGS = {
    "a1": 143,
    "a2": 143,
    "a3": 148,
    "a4": 129,
    "c1": 204,
    "c2": 204,
    "c3": 206,
    "c4": 199,
    "u1": 212,
    "n1": None,
    "k1": 206,
    "k2": 138,
}


@pytest.fixture(autouse=True)
def needed(root: None, bpf: None) -> None:
    if chain_run.missing():
        pytest.skip(f"needs {', '.join(chain_run.missing())}")


def test_every_file_is_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(msgspec.json.encode(SMALL))
    status = main(["demo", "--full", "--plan", str(plan), "--json", "--output", str(tmp_path / "out")])
    said = capsys.readouterr()
    told = json.loads(said.out)
    files = {one["name"]: one for one in told["files"]}
    assert not {name: one["problems"] for name, one in files.items() if one["problems"]}, said.err
    assert {name: one["expected"]["scitag"] for name, one in files.items()} == TAGS
    for name, tag in TAGS.items():
        one = files[name]
        is_ruled = one["moved_by"].startswith("fts-")
        assert one["scitag"] == {"job": tag if is_ruled else None, "storage": tag, "agent": tag}, name
        assert one["rule_state"] == ("OK" if is_ruled else None), name
        assert one["octets"]["wire"] > one["octets"]["file"], name
        assert (one["packets_marked"] > 0) == (min(one["fireflies"].values()) > 0) == (tag is not None), one
        assert all(one["links"].values()) or not is_ruled, one
    # The mark comes with the opening of the file: before that go connection, TLS and request.
    tagged = [files[name] for name, tag in TAGS.items() if tag]
    assert sum(one["packets_marked"] for one in tagged) > 0.5 * sum(one["packets"] for one in tagged)
    assert files["k1"]["connections"] == files["k2"]["connections"]
    assert files["c1"]["rule"] == files["c2"]["rule"] != files["c3"]["rule"]
    assert told["tagged"] == {"files": len(tagged), "found": len(tagged)}
    assert (status, told["holds"], told["dropped"]) == (0, True, 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"chain.json", "chain.png", "chain.svg"}


def test_links_that_are_broken_are_named() -> None:
    """Rucio is told a wrong experiment for CMS; no agent is in the east, and the one in the west does not mark."""
    few = Plan(tuple(one for one in SMALL.transfers if one.name in ("a1", "a3", "c2", "c4")))
    joined = join(chain_run.run(few, Options(REGISTRY, breaks=frozenset(chain_run.BREAKS)), lambda _: None))
    chains = {one.transfer.name: one for one in joined.chains}
    assert {name: list(one.problems) for name, one in chains.items()} == {
        "a1": ["packets"],
        "a3": ["agent"],
        "c2": ["job", "packets"],
        "c4": ["job", "agent"],
    }
    assert chains["c2"].problems["job"] == "the job has 143 (2, 15), not 204 (3, 12)"
    assert min(chains["c2"].fireflies) == 1
    assert not joined.holds
    said = report.as_text(joined, REGISTRY)
    for end in ("Broken: job, for 2 files", "Broken: agent, for 1 file", "Broken: packets, for 1 file"):
        assert end in said
    assert "0 of 4 tagged files found again" in said
