"""Tags on what XRootD's Python bindings open: by function and by block, seen by a real server's plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import scitags_xrootd
from scitags_core.errors import TagError
from scitags_core.tag import Tag
from tests.netns.conftest import ALICE
from tests.xrootd.clients import SECONDS
from tests.xrootd.conftest import Site
from tests.xrootd.moved import content
from tests.xrootd.plugin import ROOT

# Where another Python finds the packages of this checkout, and what they need.
PATHS = [str(ROOT), str(ROOT / "integrations" / "xrootd"), sysconfig.get_path("purelib")]
SYSTEM_PYTHON = "/usr/bin/python3"  # which Debian's bindings are for
OCTETS = 1_000_123
CODE = """
import sys, threading
from XRootD import client
import scitags_xrootd
url = sys.argv[1]

def read(tag=None):
    with client.File() as file:
        status, _ = file.open(url) if tag is None else scitags_xrootd.open_file(file, url, tag)
        assert status.ok, status
        assert file.read()[0].ok

read(143)
with scitags_xrootd.tagging(206):
    read()
    other = threading.Thread(target=read)  # a thread of its own is in no block
    other.start()
    other.join()
    copies = client.CopyProcess()
    copies.add_job(source=url, target="/dev/null", force=True)
    assert copies.prepare().ok and copies.run()[0].ok
copies = client.CopyProcess()
scitags_xrootd.add_job(copies, url, "/dev/null", 313, force=True)
assert copies.prepare().ok and copies.run()[0].ok
read()
"""


def test_with_a_real_server(site: Site) -> None:
    site.alice.server.put("bindings", content(OCTETS))
    done = subprocess.run(
        [
            "nsenter", f"--net={site.pair.bob.path}", "--",
            SYSTEM_PYTHON, "-c", CODE, site.alice.server.url("root", ALICE, "bindings"),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    transfers = site.alice.agent.transfers(6)
    # 65 is what the server's rules make of no tag.
    assert [transfer[0].scitag for transfer in transfers] == [143, 206, 65, 206, 313, 65]
    assert {transfer[1].octets for transfer in transfers} == {(OCTETS, 0)}


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Classes as the bindings have them, which tell what they were asked."""

    class File:
        def open(self, url: str, flags: int = 0) -> tuple[str, int]:
            return url, flags

    class CopyProcess:
        def add_job(self, source: str, target: str, **options: Any) -> tuple[str, str]:
            return source, target

    class FileSystem:
        def copy(self, source: str, target: str, force: bool = False) -> tuple[str, str]:
            return source, target

    package, client = ModuleType("XRootD"), ModuleType("XRootD.client")
    vars(client).update(File=File, CopyProcess=CopyProcess, FileSystem=FileSystem)
    vars(package).update(client=client)
    monkeypatch.setitem(sys.modules, "XRootD", package)
    monkeypatch.setitem(sys.modules, "XRootD.client", client)
    return SimpleNamespace(file=File(), copies=CopyProcess(), files=FileSystem())


def test_what_a_block_tags(bindings: SimpleNamespace) -> None:
    with scitags_xrootd.tagging(Tag(2, 15)):
        assert bindings.file.open("root://a//x", flags=3) == ("root://a//x?scitag.flow=143", 3)
        assert bindings.file.open(url="roots://a//x?authz=t") == ("roots://a//x?authz=t&scitag.flow=143", 0)
        assert bindings.file.open("root://a//x?scitag.flow=206")[0] == "root://a//x?scitag.flow=206"
        assert bindings.copies.add_job("root://a//x", target="/tmp/x") == ("root://a//x?scitag.flow=143", "/tmp/x")
        assert bindings.files.copy("/tmp/x", "root://a//x")[1] == "root://a//x?scitag.flow=143"
        with scitags_xrootd.tagging(206):
            assert bindings.file.open("root://a//x")[0] == "root://a//x?scitag.flow=206"
        assert bindings.file.open("root://a//x")[0] == "root://a//x?scitag.flow=143"
        assert bindings.file.open("https://a/x")[0] == "https://a/x"
    assert bindings.file.open("root://a//x")[0] == "root://a//x"


def test_what_functions_tag(bindings: SimpleNamespace) -> None:
    assert scitags_xrootd.open_file(bindings.file, "root://a//x?scitag.flow=206", 143, 5) == (
        "root://a//x?scitag.flow=143",
        5,
    )
    assert scitags_xrootd.tagged_url("/tmp/x", 143) == "/tmp/x"


def test_what_is_no_tag_is_named(bindings: SimpleNamespace) -> None:
    with pytest.raises(TagError, match="64"), scitags_xrootd.tagging(64):
        pass
    with pytest.raises(TagError, match="65536"):
        scitags_xrootd.tagged_url("root://a//x", 65536)
