"""`rucio upload`, `rucio download` and the Python clients, against a real server and a real storage.

The storage tells the tag that it read in each request, over root:// and over WebDAV.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_core.tag import Tag
from tests.rucio.instance import PEER, Fts, Rucio, Sections
from tests.rucio.site import IMPLEMENTATIONS, SCOPE, TAGGED, Client, Site
from tests.rucio.storage import Storage, why_not

USER, JOB = Tag(2, 23), Tag(2, 22)
MakeSite = Callable[[Rucio], Site]
ALWAYS: Sections = {"policy": {"lfn2pfn_module": "scitags_rucio.policy"}, "scitags": {"experiment": "atlas"}}


@pytest.fixture(scope="module")
def make_site(database: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    if why_not():
        pytest.skip(f"needs {why_not()}")
    with contextlib.ExitStack() as stack:
        made: dict[str, Site] = {}

        def of(rucio: Rucio) -> Site:
            if rucio.version not in made:
                storage = Storage(rucio)
                stack.callback(storage.close)
                directory = tmp_path_factory.mktemp("site")
                made[rucio.version] = Site(rucio, database(rucio, "def"), directory, storage)
                stack.callback(made[rucio.version].close)
            return made[rucio.version]

        yield of


def both_ways(
    client: Client, rses: list[str], prefix: str, *, before: str = "", environment: dict[str, str] | None = None
) -> list[Tag]:
    """Upload a file to each RSE, and download it from there; the tags that the storage read.

    Two processes, as the storage announces only the first file of a connection, and gfal2 keeps connections.
    """
    client.site.storage.forget()
    names = {rse: f"{prefix}-{rse.lower()}" for rse in rses}
    client.move([client.upload(*one) for one in names.items()], before=before, environment=environment)
    client.move([client.download(*one) for one in names.items()], before=before, environment=environment)
    for name in names.values():
        assert (client.directory / "got" / SCOPE / name).read_bytes() == (client.directory / name).read_bytes()
    return client.site.storage.read(0.5)


def test_the_python_clients_tag_all_implementations(rucio: Rucio, make_site: MakeSite) -> None:
    client = make_site(rucio).client(TAGGED)
    assert both_ways(client, list(IMPLEMENTATIONS), "py") == [USER] * 8


def test_rses_that_are_not_deterministic(rucio: Rucio, make_site: MakeSite) -> None:
    """A client loads its policy package for deterministic RSEs; what stands as lfn2pfn_module, it always does."""
    client = make_site(rucio).client(ALWAYS)
    assert both_ways(client, [f"{name}_ND" for name in IMPLEMENTATIONS], "nd") == [USER] * 8


def test_the_commands(rucio: Rucio, make_site: MakeSite) -> None:
    client = make_site(rucio).client(TAGGED)
    for rse in ("XRD", "DAV"):
        client.site.storage.forget()
        name = f"cli-{rse.lower()}"
        said = client.rucio("upload", "--rse", rse, "--scope", SCOPE, client.file(name))
        assert client.site.storage.tags(1) == [USER], said
        said = client.rucio("download", "--dir", client.directory / "got", "--rses", rse, f"{SCOPE}:{name}")
        assert client.site.storage.tags(1) == [USER], said
        assert (client.directory / "got" / SCOPE / name).read_bytes() == (client.directory / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, {"PandaID": "6543210"}, JOB),
        ({}, {"DIRACJOBID": "1"}, JOB),
        ({"job_variables": "MY_PILOT"}, {"PandaID": "1"}, USER),
        ({"job_variables": "X, MY_PILOT"}, {"MY_PILOT": "1"}, JOB),
        ({"client_activity": "upload/download (job)"}, {}, JOB),
        ({"client_activity": "Data Challenge"}, {"PandaID": "1"}, Tag(2, 26)),
        ({"client_activity": "Data Challenge"}, {"SCITAGS_ACTIVITY": "express"}, Tag(2, 10)),
        ({"experiment": "cms"}, {}, Tag(3, 20)),
        ({"experiment": "belleii"}, {}, Tag(6, 21)),
    ],
)
def test_the_activity_is_by_setting_or_by_the_pilots_environment(
    options: dict[str, str | None], environment: dict[str, str], expected: Tag, newest: Rucio, make_site: MakeSite
) -> None:
    site = make_site(newest)
    client = site.client({**TAGGED, "scitags": {"experiment": "atlas", **options}})
    site.storage.forget()
    client.move([client.upload("XRD", client.directory.name)], environment=environment)
    assert site.storage.tags(1) == [expected]


def test_a_user_is_not_told_that_an_experiment_lists_no_activity_for_uploads(
    newest: Rucio, make_site: MakeSite
) -> None:
    client = make_site(newest).client({**TAGGED, "scitags": {"experiment": "alice"}})
    client.site.storage.forget()
    said = client.rucio("upload", "--rse", "XRD", "--scope", SCOPE, client.file(client.directory.name))
    assert client.site.storage.tags(1) == [Tag(5, 1)]
    assert "scitags" not in said


def test_an_rses_override_is_for_direct_transfers_too(newest: Rucio, make_site: MakeSite) -> None:
    site = make_site(newest)
    client = site.client({**TAGGED, "scitags-rse": {"XRD": "Staging", "DAV": "none"}})
    assert both_ways(client, ["XRD", "DAV"], "override") == [Tag(2, 19)] * 2


BREAKING = "import scitags_rucio.tagging as tagging\ntagging.Tagger._decide = lambda *_: 1 / 0\n"


@pytest.mark.parametrize(
    ("scitags", "before"),
    [
        ({"experiment": "atlas", "registry": "/nonexistent/api.json"}, ""),
        ({"experiment": "no such"}, ""),
        ({}, ""),
        ({"experiment": "atlas"}, BREAKING),
        ({"experiment": "atlas"}, "import rucio.vcsversion as v\nv.VERSION = '42.0.0'\n"),
    ],
    ids=["no registry", "unknown experiment", "no experiment", "throws", "Rucio 42"],
)
def test_what_goes_wrong_is_no_matter_to_a_transfer(
    scitags: dict[str, str | None], before: str, newest: Rucio, make_site: MakeSite
) -> None:
    site = make_site(newest)
    client = site.client({**TAGGED, "scitags": scitags})
    assert both_ways(client, list(IMPLEMENTATIONS), client.directory.name, before=before) == []


def test_check_on_a_clients_host(rucio: Rucio, make_site: MakeSite) -> None:
    site = make_site(rucio)
    client = site.client(ALWAYS)
    client.move([client.upload("XRD", f"check-{rucio.version}")])
    done = client.run(PEER / "command.py", "check", "--json")
    report = json.loads(done.stdout)
    said = {row["activity"]: (row["scitag"], row["where"]) for row in report["rows"]}
    assert said["Upload/Download (User)"] == (151, "direct, schema")
    assert said["User Subscriptions"][1] == "schema, in use"  # of the rule that the upload made
    assert (report["side"], report["problems"]) == ("client", [])
    alone = site.client({"scitags": {"experiment": "atlas"}})
    report = json.loads(alone.run(PEER / "command.py", "check", "--json", expect=1).stdout)
    assert any("is Rucio's own: no policy package that loads scitags_rucio" in one for one in report["problems"])


RULES_BY_REST = """
import sys
from rucio.client import Client
client, fts, activities = Client(), sys.argv[1], sys.argv[2:]
for rse in ("SITE_A", "SITE_B"):
    client.add_rse_attribute(rse, "fts", fts)
for number, activity in enumerate(activities):
    file = {"scope": "user.jdoe", "name": f"rest{number}", "bytes": 1, "adler32": "12345678"}
    client.add_replicas("SITE_A", [file])
    client.add_replication_rule([{"scope": "user.jdoe", "name": f"rest{number}"}], 1, "SITE_B", activity=activity)
"""


def test_rules_that_come_by_rest_are_submitted_with_their_tags(rucio: Rucio, make_site: MakeSite, fts: Fts) -> None:
    """The server and the submitter of one instance, both with the policy package; a client with none of it."""
    site = make_site(rucio)
    activities = {"Staging": 147, "T0 Tape": 149, "Functional Test": 139, "User Subscriptions": 152}
    site.client({}).run("-c", RULES_BY_REST, fts.url, *activities)
    said = site.instance.submit(fts, [])
    by_activity = {
        file["activity"]: file["scitag"] for file in fts.files if file["metadata"]["name"].startswith("rest")
    }
    assert by_activity == activities, said
