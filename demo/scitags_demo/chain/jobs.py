"""Stands for FTS's REST server in tests and in the demonstration: takes jobs, keeps them, says what became of them.

It is no FTS. What it answers to a submission, and what it refuses, is what the real server (3.13) was seen to answer:
`files[].scitag` is a JSON integer 65..65535, or null, or absent; one bad file refuses the whole job.
"""

from __future__ import annotations

import http.server
import json
import threading
import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from scitags_core.tag import SCITAG_MAX, SCITAG_MIN

VERSION = {"major": 3, "minor": 13, "patch": 4}
FileState = Literal["SUBMITTED", "ACTIVE", "FINISHED", "FAILED"]
POLL_SECONDS = 0.05  # how soon it is noticed that the server is to end
FINAL = ("FINISHED", "FAILED")


class JobRefused(ValueError):
    """What FTS answers with status 400."""


class File(msgspec.Struct, kw_only=True):
    """One transfer of a job: what was asked for, and what became of it. Times are seconds since 1970."""

    job_id: str
    file_id: int
    source: str
    destination: str
    scitag: int | None
    metadata: dict[str, Any]
    checksum: str = ""
    state: FileState = "SUBMITTED"
    reason: str = ""
    started: float = 0.0
    finished: float = 0.0
    command: list[str] = msgspec.field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the file, as Rucio has it in the metadata."""
        return str(self.metadata.get("name", ""))


def check_scitag(value: object) -> int | None:
    """The scitag of a file in a job, None where it has none. Raises JobRefused as FTS does."""
    if value is None:
        return None
    if type(value) is int or isinstance(value, bool):
        # FTS counts true and false as the numbers 1 and 0.
        if SCITAG_MIN <= value <= SCITAG_MAX:
            return int(value)
        raise JobRefused(f"Invalid SciTag value: {value} (not in [{SCITAG_MIN}, {SCITAG_MAX}] range)")
    raise JobRefused(f"Invalid SciTag value: {value}. Must be an integer in the [{SCITAG_MIN}, {SCITAG_MAX}] range!")


def read_job(body: bytes) -> list[dict[str, Any]]:
    """The files of a job that is posted. Raises JobRefused."""
    try:
        job = json.loads(body)
        files = job["files"]
        if not files:
            raise JobRefused("No transfers specified")
        for file in files:
            if not file["sources"] or not file["destinations"]:
                raise JobRefused("No sources or no destinations")
            file["scitag"] = check_scitag(file.get("scitag"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, JobRefused):
            raise
        raise JobRefused(f"Invalid value within the request: {error!r}") from None
    return list(files)


class Jobs:
    """The queue: every job that was accepted, in the order of its coming. May be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self.bodies: list[bytes] = []  # of accepted jobs, as they came
        self.files: list[File] = []

    def accept(self, body: bytes) -> str:
        """The new job's id. Raises JobRefused."""
        asked = read_job(body)
        job_id = str(uuid.uuid4())
        with self._lock:
            self.bodies.append(body)
            for one in asked:
                self._count += 1
                self.files.append(
                    File(
                        job_id=job_id,
                        file_id=self._count,
                        source=one["sources"][0],
                        destination=one["destinations"][0],
                        scitag=one["scitag"],
                        metadata=one.get("metadata") or {},
                        checksum=one.get("checksum") or "",
                    )
                )
        return job_id

    def of(self, job_id: str) -> list[File]:
        with self._lock:
            return [file for file in self.files if file.job_id == job_id]


class JobServer:
    """The queue's REST interface, on loopback: POST /jobs, GET /jobs/ID[,ID...], GET /."""

    def __init__(self, port: int = 0) -> None:
        """Serves from now on, until closed. Port 0: any that is free. Raises OSError."""
        self.queue = Jobs()
        jobs = self.queue

        class Handler(_Handler):
            queue = jobs

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    queue: Jobs

    def do_GET(self) -> None:
        parts = [part for part in urlsplit(self.path).path.split("/") if part]
        if not parts:
            self._answer(HTTPStatus.OK, {"api": VERSION, "core": VERSION, "schema": VERSION, "delegation": {}})
        elif len(parts) == 2 and parts[0] == "jobs":  # noqa: PLR2004
            answers = [_told(job_id, self.queue.of(job_id)) for job_id in parts[1].split(",")]
            self._answer(HTTPStatus.OK, answers[0] if len(answers) == 1 else answers)
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"status": "404 Not Found", "message": self.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            job_id = self.queue.accept(body)
        except JobRefused as refusal:
            self._answer(HTTPStatus.BAD_REQUEST, {"status": "400 Bad Request", "message": str(refusal)})
        else:
            self._answer(HTTPStatus.OK, {"job_id": job_id})

    def _answer(self, status: HTTPStatus, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: what came is in the queue."""


def _told(job_id: str, files: list[File]) -> dict[str, Any]:
    """A job as Rucio's conveyor-poller asks for it."""
    if not files:
        return {"job_id": job_id, "http_status": "404 Not Found", "http_message": f"no job {job_id}"}
    return {
        "job_id": job_id,
        "http_status": "200 Ok",
        "job_state": _job_state([file.state for file in files]),
        "job_type": "N",
        "job_metadata": {},
        "files": [
            {
                "file_id": file.file_id,
                "file_state": file.state,
                "file_metadata": file.metadata,
                "source_surl": file.source,
                "dest_surl": file.destination,
                "reason": file.reason,
                "start_time": _instant(file.started),
                "finish_time": _instant(file.finished),
                "staging_start": None,
                "staging_finished": None,
            }
            for file in files
        ],
    }


def _job_state(states: list[FileState]) -> str:
    if any(state not in FINAL for state in states):
        return "ACTIVE" if "ACTIVE" in states else "SUBMITTED"
    if "FAILED" not in states:
        return "FINISHED"
    return "FINISHEDDIRTY" if "FINISHED" in states else "FAILED"


def _instant(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") if seconds else None
