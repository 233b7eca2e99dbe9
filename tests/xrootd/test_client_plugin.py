"""The client plug-in: what is linked to XRootD's client bears the tag of its environment, its settings or its rules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.netns.conftest import ALICE, BOB
from tests.xrootd.clients import SECONDS, XRDCP, logged
from tests.xrootd.conftest import Site
from tests.xrootd.moved import TAG, check_marked, content, in_streams, one, sent
from tests.xrootd.plugin import built_for_clients, built_for_clients_of_6

OCTETS = 24_000_123
OTHER = 206
RULES = """
scitags.map path /atlas host 2001:db8:1::/48 2 15
scitags.map path /atlas 2 16
scitags.map path /by-name host localhost 3 14
"""
Run = Callable[..., str]


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Run:
    """Run a command on bob with the plug-in; settings are lines of its file."""
    built = built_for_clients()
    plugins = tmp_path / "client.plugins.d"
    plugins.mkdir()

    def with_plugin(
        command: Sequence[str | Path],
        settings: str = "",
        environment: Mapping[str, str] | None = None,
        library: Path = built,
    ) -> str:
        name = re.sub(r"-\d\.so$", ".so", str(library))
        (plugins / "scitags.conf").write_text(f"url = root://*;roots://*\nlib = {name}\nenable = true\n{settings}")
        done = subprocess.run(
            ["nsenter", f"--net={site.pair.bob.path}", "--", *command],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "XRD_PLUGINCONFDIR": str(plugins), **(environment or {})},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return with_plugin


@pytest.mark.parametrize("how", ["environment", "settings"])
def test_xrdcp_down(site: Site, run: Run, how: str, tmp_path: Path) -> None:
    site.alice.server.put("down", content(OCTETS))
    command = [*XRDCP, "--silent", site.alice.server.url("root", ALICE, "down"), tmp_path / "down"]
    said = run(command, environment={"SCITAGS_TAG": str(TAG)}) if how == "environment" else run(command, f"tag = {TAG}")
    assert said == ""
    assert (tmp_path / "down").read_bytes() == content(OCTETS)
    start, end = one(site.alice.agent)
    assert (start.scitag, end.octets) == (TAG, (OCTETS, 0))
    check_marked(sent(site), start, TAG)


def test_xrdcp_up_in_several_streams(site: Site, run: Run, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(content(OCTETS))
    url = site.alice.server.url("root", ALICE, "client-up?authz=none")
    log = tmp_path / "log"
    command = logged(log, [*XRDCP, "--streams", "4", "--xrate", "20m", tmp_path / "up", url])
    connections, records = in_streams(site, log, lambda: run(command, environment={"SCITAGS_TAG": str(TAG)}))
    assert (site.alice.server.root / "client-up").read_bytes() == content(OCTETS)
    assert {record.scitag for record in records} == {TAG}
    assert len(records) == 2 * connections
    assert sum(record.octets[0] for record in records if record.state == "end") == OCTETS


def test_a_third_party_copy(site: Site, run: Run) -> None:
    site.alice.server.put("third", content(OCTETS))
    (site.bob.server.root / "third-copy").unlink(missing_ok=True)
    urls = site.alice.server.url("root", ALICE, "third"), site.bob.server.url("root", BOB, "third-copy")
    run([*XRDCP, "--tpc", "only", *urls], environment={"SCITAGS_TAG": str(TAG)})
    assert (site.bob.server.root / "third-copy").read_bytes() == content(OCTETS)
    (records,) = site.alice.agent.transfers(1)
    assert {record.scitag for record in records} == {TAG}
    assert max(record.octets for record in records if record.state == "end") == (OCTETS, 0)


def test_a_tag_in_the_url_stays(site: Site, run: Run) -> None:
    site.alice.server.put("own", content(10))
    url = site.alice.server.url("root", ALICE, f"own?scitag.flow={OTHER}")
    run([*XRDCP, url, "/dev/null"], environment={"SCITAGS_TAG": str(TAG)})
    assert one(site.alice.agent)[0].scitag == OTHER


@pytest.mark.parametrize(("path", "tag"), [("atlas/file", (2, 15)), ("by-name/file", (1, 1)), ("else", (1, 1))])
def test_rules(site: Site, run: Run, path: str, tag: tuple[int, int], tmp_path: Path) -> None:
    (site.alice.server.root / path).parent.mkdir(exist_ok=True, mode=0o755)
    (site.alice.server.root / path).parent.chmod(0o755)
    site.alice.server.put(path, content(10))
    (tmp_path / "rules").write_text(RULES.replace("2001:db8:1::/48", f"{ALICE}/128"))
    said = run(
        [*XRDCP, "--silent", site.alice.server.url("root", ALICE, path), "/dev/null"], f"rules = {tmp_path}/rules"
    )
    assert said == ""
    start, _ = one(site.alice.agent)
    assert (start.experiment_id, start.activity_id) == tag  # (1, 1) is what the server makes of no tag


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SCITAGS_TAG": "64"}, "'64' is no scitag of 65..65535: it is not used"),
        ({"SCITAGS_RULES": "/nowhere"}, "/nowhere cannot be read: No such file or directory: its rules are not used"),
        ({"SCITAGS_RULES": "{rules}"}, "{rules}:1: scitags.map: no condition"),
    ],
)
def test_what_is_wrong_is_said_and_the_transfer_goes_on(
    site: Site, run: Run, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    site.alice.server.put("wrong", content(10))
    (tmp_path / "rules").write_text("scitags.map 2 15\n")
    environment = {name: value.format(rules=tmp_path / "rules") for name, value in environment.items()}
    said = run([*XRDCP, site.alice.server.url("root", ALICE, "wrong"), "/dev/null"], environment=environment)
    assert message.format(rules=tmp_path / "rules") in said
    assert one(site.alice.agent)[0].scitag == 65


PYTHON = """
import sys
from XRootD import client
from XRootD.client.flags import OpenFlags
url, octets = sys.argv[1], int(sys.argv[2])
with client.File() as file:
    status, _ = file.open(url, OpenFlags.DELETE | OpenFlags.UPDATE)
    assert status.ok, status
    for at in range(0, octets, 1 << 20):
        assert file.write(b"x" * min(1 << 20, octets - at), offset=at)[0].ok
    assert file.sync()[0].ok
    assert file.stat(force=True)[1].size == octets
    status, parts = file.vector_read([(0, 1000), (octets - 500, 500)])
    assert status.ok and b"".join(part.buffer for part in parts.chunks) == b"x" * 1500, status
    assert file.truncate(octets - 1)[0].ok
    assert file.get_property("DataServer")
    assert file.is_open()
files = client.FileSystem(url)
assert files.ping()[0].ok
"""


def test_all_that_a_file_can_do_goes_through(site: Site, run: Run) -> None:
    url = site.alice.server.url("root", ALICE, "python-file")
    said = run(["/usr/bin/python3", "-c", PYTHON, url, str(OCTETS)], f"tag = {TAG}")
    assert said == ""
    start, end = one(site.alice.agent)
    assert start.scitag == TAG
    assert sorted(end.octets) == [1500, OCTETS]
    assert (site.alice.server.root / "python-file").stat().st_size == OCTETS - 1


READS = """
import sys
from XRootD import client
with client.File() as file:
    assert file.open(sys.argv[1])[0].ok
    assert len(file.read()[1]) == int(sys.argv[2])
copies = client.CopyProcess()
copies.add_job(sys.argv[1], "/dev/null", force=True)
assert copies.prepare().ok
assert copies.run()[0].ok
print(client.__file__)
"""


def test_the_client_of_xrootd_6(site: Site, run: Run) -> None:
    """PyPI's: Debian 12 has none."""
    library, packages = built_for_clients_of_6()
    site.alice.server.put("six", content(OCTETS))
    command = [sys.executable, "-c", READS, site.alice.server.url("root", ALICE, "six"), str(OCTETS)]
    said = run(command, f"tag = {TAG}", {"PYTHONPATH": str(packages)}, library)
    assert str(packages) in said
    for start, end in site.alice.agent.transfers(2):
        assert (start.scitag, end.octets) == (TAG, (OCTETS, 0))


def test_programs_that_ask_no_file_are_left_alone(site: Site, run: Run) -> None:
    site.alice.server.put("listed", b"")
    said = run(["xrdfs", f"root://[{ALICE}]:1094", "ls", "/listed"], f"tag = {TAG}")
    assert said.strip() == "/listed"
