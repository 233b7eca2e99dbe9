"""`rucio upload`, `rucio download` and the Python clients, against a real server and a real storage.

The storage tells the tag that it read in each request, over root:// and over WebDAV.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scitags_core.tag import Tag
from tests.real.peers import SYSTEM_PYTHON
from tests.rucio.conftest import Sections
from tests.rucio.instance import PEER, Fts, Instance, Rucio, copied
from tests.rucio.storage import STOP_SECONDS, Storage, free_port, wait_for_port

USER, JOB = Tag(2, 23), Tag(2, 22)
SCOPE = "user.jdoe"
IMPLEMENTATIONS = {
    "XRD": ("root", "xrootd.Default"),
    "DAV": ("https", "webdav.Default"),
    "GFALXRD": ("root", "gfal.Default"),
    "GFALDAV": ("http", "gfal.NoRename"),
}
MakeSite = Callable[[Rucio], "Site"]
TAGGED: Sections = {"policy": {"package": "scitags_rucio.policy"}, "scitags": {"experiment": "atlas"}}
ALWAYS: Sections = {"policy": {"lfn2pfn_module": "scitags_rucio.policy"}, "scitags": {"experiment": "atlas"}}


class Site:
    """A storage, an instance that has it as RSEs, and clients of that instance."""

    def __init__(self, rucio: Rucio, template: Path, directory: Path, storage: Storage) -> None:
        self.rucio = rucio
        self.storage = storage
        self._directory = directory
        self.instance = Instance(rucio, copied(template, directory / "server"), sections=TAGGED)
        rses = directory / "rses.json"
        rses.write_text(json.dumps(self._rses()))
        self.instance.run(PEER / "rses.py", rses)
        self.port = free_port()
        self._log = directory / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [rucio.python, PEER / "serve.py", str(self.port)],
                env=self.instance.environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._count = 0
        try:
            wait_for_port(self.port, self._process, self._log)
        except BaseException:
            self.close()
            raise

    def _rses(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (scheme, implementation) in IMPLEMENTATIONS.items():
            port = self.storage.root_port if scheme == "root" else self.storage.http_port
            for suffix in ("", "_ND"):
                found[name + suffix] = {
                    "scheme": scheme,
                    "port": port,
                    "prefix": "//data/" if scheme == "root" else "/data/",
                    "impl": f"rucio.rse.protocols.{implementation}",
                    "deterministic": not suffix,
                }
        return found

    def client(self, sections: Sections) -> Client:
        self._count += 1
        directory = self._directory / f"client{self._count}"
        directory.mkdir()
        return Client(self, directory, sections)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)


class Client:
    """A user's host: a rucio.cfg of a client, and a directory to work in."""

    def __init__(self, site: Site, directory: Path, sections: Sections) -> None:
        self.site = site
        self.directory = directory
        url = f"http://127.0.0.1:{site.port}"
        base: Sections = {
            "database": {"default": None},
            "client": {
                "rucio_host": url,
                "auth_host": url,
                "account": "root",
                "auth_type": "userpass",
                "username": "ddmlab",
                "password": "secret",
                "auth_token_file_path": str(directory / "token"),
            },
        }
        self._as_instance = Instance(site.rucio, directory, sections={**base, **sections})
        text = self._as_instance.config.read_text().replace("[database]\n", "")
        self._as_instance.config.write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self._as_instance.environment,
            "X509_USER_PROXY": str(self.site.storage.proxy),
            "XRD_LOGLEVEL": "Error",
            "HOME": str(self.directory),
            "PYTHONWARNINGS": "ignore",
        }

    def file(self, name: str) -> Path:
        path = self.directory / name
        path.write_bytes(name.encode() * 5000)
        return path

    def rucio(self, *arguments: str | Path, environment: dict[str, str] | None = None) -> str:
        """Run the command `rucio`; what it said."""
        script = shutil.which("rucio", path=str(self.site.rucio.python.parent))
        assert script is not None
        done = self._as_instance.run(script, *arguments, environment={**self.environment, **(environment or {})})
        return done.stdout + done.stderr

    def run(self, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run Rucio's interpreter."""
        return self._as_instance.run(*arguments, environment=self.environment, expect=expect)

    def move(self, moves: list[dict[str, Any]], *, before: str = "", environment: dict[str, str] | None = None) -> str:
        """Run the Python clients over the moves; what they said. Each is to succeed."""
        asked = self.directory / "moves.json"
        asked.write_text(json.dumps({"before": before, "moves": moves}))
        done = self._as_instance.run(PEER / "move.py", asked, environment={**self.environment, **(environment or {})})
        said = done.stdout + done.stderr
        assert done.stdout.splitlines().count("done") == len(moves), said
        return said

    def upload(self, rse: str, name: str) -> dict[str, Any]:
        """An upload to an RSE, with a place of its own where that does not follow from the name."""
        item = {"path": str(self.file(name)), "rse": rse, "did_scope": SCOPE, "did_name": name}
        scheme, _ = IMPLEMENTATIONS[rse.removesuffix("_ND")]
        if rse.endswith("_ND"):
            port = self.site.storage.root_port if scheme == "root" else self.site.storage.http_port
            slash = "/" if scheme == "root" else ""
            item["pfn"] = f"{scheme}://127.0.0.1:{port}{slash}/data/own/{name}"
        return {"upload": item}

    def download(self, rse: str, name: str) -> dict[str, Any]:
        return {"download": {"did": f"{SCOPE}:{name}", "rse": rse, "base_dir": str(self.directory / "got")}}


@pytest.fixture(scope="module")
def make_site(database: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    if shutil.which("xrootd") is None or shutil.which("xrdcp") is None:
        pytest.skip("needs Debian's xrootd-server, xrootd-server-plugins and xrootd-client")
    if subprocess.run([SYSTEM_PYTHON, "-c", "import gfal2"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs Debian's python3-gfal2 and gfal2-plugin-file, -http and -xrootd")
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
