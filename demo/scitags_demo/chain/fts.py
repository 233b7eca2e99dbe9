"""`python -m scitags_demo.chain.fts PORT RECORD`: stands for FTS, in tests and in the demonstration.

It takes jobs by REST on loopback (scitags_demo.chain.jobs), and moves each file as FTS's own worker would, with the tag
of the job: by gfal2 or by asking a storage for a third-party copy by HTTP (header SciTag), or by xrdcp
(scitag.flow). A line of JSON on standard input, {"begin": {NAME: seconds since 1970}, "slots": N, "environment": {...},
"authority": FILE}, sets it off; files that are not named begin at once. What became of each file is a line of
JSON in RECORD. It ends with standard input.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from scitags_core import carrier
from scitags_core.tag import decode
from scitags_demo.chain.jobs import File, Jobs, JobServer

FILE_SECONDS = 120
POLL_SECONDS = 0.05
LAST_SAID = 400  # characters of a failed command's words


class Orders(msgspec.Struct, frozen=True):
    """When to begin with which file, how many at a time, and how storages are trusted.

    ways    by the file's name "gfal2" or "copy"; those by root are xrdcp's
    """

    begin: dict[str, float]
    ways: dict[str, str]
    slots: int
    authority: str


def command(file: File, orders: Orders) -> list[str]:
    """What moves a file, as FTS would have it moved."""
    tag = None if file.scitag is None else decode(file.scitag)
    if file.source.startswith("root:"):
        source, destination = file.source, file.destination
        if tag is not None:
            source, destination = carrier.add_to_url(source, tag), carrier.add_to_url(destination, tag)
        return ["xrdcp", "--nopbar", "--force", "--retry", "0", "--tpc", "only", source, destination]
    headers = {} if tag is None else carrier.headers(tag)
    if orders.ways.get(file.name, "gfal2") == "gfal2":
        sent = [f"-DHTTP PLUGIN:HEADERS={name}: {value}" for name, value in headers.items()]
        options = ["-f", "-p", "-t", str(FILE_SECONDS), "-DHTTP PLUGIN:INSECURE=true"]
        return ["gfal-copy", *options, *sent, file.source, file.destination]
    # The directory is made where it is not yet; then the destination is asked to fetch the file.
    asked = {"Source": _https(file.source), "Overwrite": "T", **headers}
    sent = [part for name, value in asked.items() for part in ("-H", f"{name}: {value}")]
    options = ["--silent", "--show-error", "--globoff", "--cacert", orders.authority]
    destination = _https(file.destination)
    made = [*options, "-o", "/dev/null", "-X", "MKCOL", destination.rpartition("/")[0]]
    return ["curl", *made, "--next", *options, "--fail-with-body", "-X", "COPY", *sent, destination]


def _https(url: str) -> str:
    return "https" + url[url.index(":") :]


def move(file: File, orders: Orders) -> None:
    """Carry it out; what became of it stands in the file."""
    file.command = command(file, orders)
    file.state, file.started = "ACTIVE", time.time()
    try:
        done = subprocess.run(  # noqa: S603  (the client that moves it)
            [*_dies_with_us(), *file.command],
            env={**os.environ, "GFAL_PYTHONBIN": "/usr/bin/python3", "BEARER_TOKEN": "none", "XRD_LOGLEVEL": "Error"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FILE_SECONDS,
            check=False,
        )
        problem = _problem(file.command[0], done)
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    file.finished = time.time()
    file.reason = problem
    file.state = "FAILED" if problem else "FINISHED"


def _dies_with_us() -> list[str]:
    found = shutil.which("setpriv")
    return [found, "--pdeathsig", "KILL"] if found else []


def _problem(program: str, done: subprocess.CompletedProcess[str]) -> str:
    """Why a command failed; empty when it did not. The answer to a COPY says at its end how it went."""
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0 and (program != "curl" or "success" in done.stdout):
        return ""
    return f"{program} ended with status {done.returncode}: {said[-LAST_SAID:]}"


class Worker:
    """Takes files from the queue when their time has come, so many at once."""

    def __init__(self, jobs: Jobs, orders: Orders, record: Path) -> None:
        self._jobs = jobs
        self._orders = orders
        self._record = record
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._pool = ThreadPoolExecutor(orders.slots)

    def look(self) -> None:
        """Take what is due."""
        now = time.time()
        for file in tuple(self._jobs.files):
            if file.file_id not in self._taken and self._orders.begin.get(file.name, 0.0) <= now:
                self._taken.add(file.file_id)
                self._pool.submit(self._carry_out, file)

    def _carry_out(self, file: File) -> None:
        move(file, self._orders)
        with self._lock, self._record.open("ab") as record:
            record.write(msgspec.json.encode(file) + b"\n")


def main() -> None:
    port, record = int(sys.argv[1]), Path(sys.argv[2])
    server = JobServer(port)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    worker = Worker(server.queue, msgspec.json.decode(line, type=Orders), record)
    threading.Thread(target=_end_with_input, daemon=True).start()
    while True:
        worker.look()
        time.sleep(POLL_SECONDS)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
