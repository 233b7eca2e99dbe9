"""What stands for FTS answers a submission as the real server was seen to."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from scitags_demo.chain.fts import Orders, command
from scitags_demo.chain.jobs import File, JobServer

RANGE = "(not in [65, 65535] range)"
INTEGER = "Must be an integer in the [65, 65535] range!"
REFUSED: list[tuple[Any, str]] = [
    *((value, RANGE) for value in (64, 65536, -1, 0, 196613, True, False)),
    *((value, INTEGER) for value in ["143", "", 143.0, [143], {}, math.nan]),
]


@pytest.fixture
def server() -> Iterator[JobServer]:
    one = JobServer()
    yield one
    one.close()


def posted(server: JobServer, *files: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and answer to a job of these files."""
    ends = {"sources": ["root://a//f"], "destinations": ["root://b//f"]}
    body = json.dumps({"files": [{**ends, **file} for file in files]}).encode()
    return asked(server, "/jobs", body)


def asked(server: JobServer, path: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(server.url + path, body, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("file", "scitag"),
    [({"scitag": 65}, 65), ({"scitag": 143}, 143), ({"scitag": 65535}, 65535), ({"scitag": None}, None), ({}, None)],
)
def test_scitags_that_are_accepted(file: dict[str, Any], scitag: int | None, server: JobServer) -> None:
    status, answer = posted(server, file, {"activity": "Production Input", "metadata": {"name": "second"}})
    assert status == 200
    assert [(one.scitag, one.name) for one in server.queue.of(answer["job_id"])] == [(scitag, ""), (None, "second")]


@pytest.mark.parametrize(("scitag", "end"), REFUSED)
def test_one_bad_scitag_refuses_the_whole_job(scitag: Any, end: str, server: JobServer) -> None:
    status, answer = posted(server, {"scitag": 143}, {"scitag": scitag})
    assert status == 400
    assert answer["message"].startswith("Invalid SciTag value: ")
    assert answer["message"].endswith(end)
    assert server.queue.files == []


@pytest.mark.parametrize("body", [b"", b"[]", b'{"files": []}', b'{"files": [7]}', b'{"files": [{"sources": []}]}'])
def test_what_is_no_job_is_refused(body: bytes, server: JobServer) -> None:
    assert asked(server, "/jobs", body)[0] == 400
    assert server.queue.files == []


def test_a_job_is_told_of_as_the_poller_asks(server: JobServer) -> None:
    _, answer = posted(server, {"scitag": 143}, {"scitag": 206})
    first, second = server.queue.of(answer["job_id"])
    first.state, first.started, first.finished = "FINISHED", 1.0, 2.0
    _, told = asked(server, f"/jobs/{answer['job_id']},lost?files=file_state")
    assert [one["http_status"] for one in told] == ["200 Ok", "404 Not Found"]
    assert (told[0]["job_state"], told[0]["files"][0]["finish_time"]) == ("SUBMITTED", "1970-01-01T00:00:02")
    second.state, second.reason = "FAILED", "no space"
    _, told = asked(server, f"/jobs/{answer['job_id']}")
    assert (told["job_state"], told["files"][1]["reason"]) == ("FINISHEDDIRTY", "no space")


@pytest.mark.parametrize(
    ("scheme", "way", "program", "carried"),
    [
        ("davs", "gfal2", "gfal-copy", "-DHTTP PLUGIN:HEADERS=SciTag: 143"),
        ("davs", "copy", "curl", "SciTag: 143"),
        ("root", "xrdcp", "xrdcp", "root://a//f?scitag.flow=143"),
    ],
)
def test_a_file_is_moved_with_the_tag_of_its_job(scheme: str, way: str, program: str, carried: str) -> None:
    orders = Orders(begin={}, ways={"f": way}, slots=1, authority="/ca.pem")
    file = File(
        job_id="1",
        file_id=1,
        source=f"{scheme}://a//f",
        destination=f"{scheme}://b//f",
        scitag=143,
        metadata={"name": "f"},
    )
    found = command(file, orders)
    assert found[0] == program
    assert carried in found
    file.scitag = None
    assert not any("scitag" in part.lower() for part in command(file, orders))
