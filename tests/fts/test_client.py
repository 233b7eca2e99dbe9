"""The real fts3 client, unchanged, in an environment of its own; what it posts is captured on loopback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scitags_core.cli import main
from scitags_demo.chain.jobs import JobServer
from tests.real.peers import SYSTEM_PYTHON, peer_environment

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def fts3() -> Path:
    """The interpreter of an environment with the client, which wants Debian's M2Crypto."""
    done = subprocess.run([SYSTEM_PYTHON, "-c", "import M2Crypto"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs python3-m2crypto, which fts3 is built on")
    return peer_environment("fts3", ["fts3>=3.14"], system_packages=True)


class Service(JobServer):
    """Stands for FTS, and tells what was posted."""

    @property
    def jobs(self) -> list[Any]:
        return [json.loads(body) for body in self.queue.bodies]


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    yield one
    one.close()


def script(fts3: Path, code: str, *arguments: str, expect: int = 0) -> str:
    """Run code with the real client and our packages, as a user's script would."""
    path = os.pathsep.join(str(ROOT / one) for one in (".", "integrations/fts"))
    done = subprocess.run(
        [fts3, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


CONTEXT = """
import sys
import fts3.rest.client.easy as fts3
from fts3.rest.client import Submitter
context = fts3.Context(sys.argv[1], fts_access_token="token", verify=False)
"""


def test_a_script_is_switched_on_with_one_line_and_off_again(fts3: Path, service: Service) -> None:
    said = script(
        fts3,
        f"""
import scitags_fts
{CONTEXT}
scitags_fts.enable("atlas")
files = [fts3.new_transfer("root://a//1", "root://b//1", activity="production input"),
         fts3.new_transfer("root://a//2", "root://b//2"),
         fts3.new_transfer("root://a//3", "root://b//3", scitag=200)]
print(fts3.submit(context, fts3.new_job(files, metadata={{"activity": "Staging"}})))
Submitter(context).submit([{{"sources": ["root://a//4"], "destinations": ["root://b//4"]}}], activity="Analysis Input")
scitags_fts.disable()
fts3.submit(context, fts3.new_job([fts3.new_transfer("root://a//5", "root://b//5", activity="Staging")]))
assert scitags_fts.client.counters == {{"tagged": 2}}
""",
        service.url,
    )
    assert service.queue.files[0].job_id in said
    assert [[file.get("scitag") for file in job["files"]] for job in service.jobs] == [[143, 147, 200], [145], [None]]
    assert all(type(file["scitag"]) is int for job in service.jobs[:2] for file in job["files"])


def test_transfers_and_jobs_of_ours_are_the_clients_with_a_tag(fts3: Path, service: Service) -> None:
    script(
        fts3,
        f"""
import scitags_fts
{CONTEXT}
ours = scitags_fts.new_transfer("root://a//1", "root://b//1", experiment="CMS", activity="analysis input", filesize=7)
theirs = fts3.new_transfer("root://a//1", "root://b//1", activity="analysis input", filesize=7)
assert ours == {{**theirs, "scitag": 206}}, ours
job = scitags_fts.new_job([theirs], experiment=3, retry=5)
assert job["params"] == fts3.new_job([theirs], retry=5)["params"]
fts3.submit(context, job)
""",
        service.url,
    )
    assert service.jobs[0]["files"][0]["scitag"] == 206
    assert service.jobs[0]["params"]["retry"] == 5


def test_a_job_that_fts_would_refuse_is_not_sent_and_the_file_is_named(fts3: Path, service: Service) -> None:
    said = script(
        fts3,
        f"""
import scitags_fts
{CONTEXT}
scitags_fts.enable("atlas")
Submitter(context).submit([{{"sources": ["x"], "destinations": ["y"]}}, {{"sources": ["x"], "scitag": "143"}}])
""",
        service.url,
        expect=1,
    )
    assert "file 1: scitag '143' is not a JSON integer 65..65535" in said
    assert service.jobs == []


def test_the_command_submits(fts3: Path, service: Service, tmp_path: Path) -> None:
    token, job = tmp_path / "token", tmp_path / "job.json"
    token.write_text("secret\n")
    job.write_text(json.dumps({"files": [{"sources": ["x"], "destinations": ["y"], "activity": "Staging"}]}))
    command = """
import sys
from scitags_core.cli import tags
from scitags_fts import command
import argparse
parser = argparse.ArgumentParser()
command.configure(parser)
arguments = parser.parse_args(sys.argv[1:])
sys.exit(command.run(arguments))
"""
    said = script(
        fts3,
        command,
        "submit",
        "--experiment",
        "atlas",
        "--endpoint",
        service.url,
        "--token-file",
        str(token),
        str(job),
    )
    assert service.queue.files[0].job_id in said
    assert [file["scitag"] for file in service.jobs[0]["files"]] == [147]


def test_without_the_client_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.json"
    job.write_text('{"files": []}')
    assert main(["fts", "submit", "--experiment", "atlas", "--endpoint", "http://127.0.0.1:1", str(job)]) == 1
    assert "the official client is missing: pip install fts3" in capsys.readouterr().err
