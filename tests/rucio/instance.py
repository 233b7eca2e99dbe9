"""Real Rucio instances on SQLite, in environments of their own, and a service that takes what they submit to FTS."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).parent / "peer"
RUN_SECONDS = 120
ALEMBIC = """[alembic]
script_location = rucio:db/sqla/migrate_repo
sqlalchemy.url = sqlite:///{database}
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = WARN
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(message)s
"""


class Rucio(msgspec.Struct, frozen=True):
    """A Rucio that is installed: its version, and the interpreter of its environment."""

    version: str
    python: Path


class Instance:
    """A Rucio instance: rucio.cfg and a database in one directory. Every run is a process of its own.

    sections are those of rucio.cfg beside what every instance has; a value of None takes an option away.
    """

    def __init__(self, rucio: Rucio, directory: Path, *, sections: dict[str, dict[str, str | None]]) -> None:
        self.rucio = rucio
        self.directory = directory
        self.database = directory / "rucio.db"
        self.config = directory / "rucio.cfg"
        self.cache = directory / "cache"
        self.prefix: list[str | Path] = []  # what each command is run by
        base: dict[str, dict[str, str | None]] = {
            "database": {"default": f"sqlite:///{self.database}"},
            "alembic": {"cfg": str(directory / "alembic.ini")},
            "conveyor": {"transfertool": "fts3"},
            "common": {"loglevel": "INFO", "logdir": str(directory)},
        }
        for name, options in sections.items():
            base[name] = {**base.get(name, {}), **options}
        lines = []
        for name, options in base.items():
            lines += [f"[{name}]", *(f"{option} = {value}" for option, value in options.items() if value is not None)]
        self.config.write_text("\n".join(lines) + "\n")
        (directory / "alembic.ini").write_text(ALEMBIC.format(database=self.database))

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the instance; what the host has configured plays no part."""
        path = os.pathsep.join(str(ROOT / one) for one in (".", "integrations/rucio"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SCITAGS_", "RUCIO_"))}
        return {
            **kept,
            "PATH": f"{self.rucio.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUCIO_CONFIG": str(self.config),
            "SCITAGS_CONFIG": "",
            "XDG_CONFIG_HOME": str(self.directory),
            "SCITAGS_CACHE_DIR": str(self.cache),
        }

    def run(
        self, *arguments: str | Path, expect: int | None = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the environment's interpreter."""
        done = subprocess.run(
            [*self.prefix, self.rucio.python, *arguments],
            env={**self.environment, **(environment or {})},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert expect is None or done.returncode == expect, done.stdout + done.stderr
        return done

    def submit(
        self, fts: Fts, rules: list[dict[str, Any]], environment: dict[str, str] | None = None, **more: Any
    ) -> str:
        """Make the rules and submit what they ask for; what was logged."""
        asked = self.directory / "rules.json"
        asked.write_text(json.dumps({"fts": fts.url, "rules": rules, **more}))
        done = self.run(PEER / "submit.py", asked, environment=environment)
        return done.stdout + done.stderr


def built(rucio: Rucio, directory: Path, *vos: str) -> Path:
    """A directory with the database of a new instance, to be copied."""
    multi: dict[str, dict[str, str | None]] = {"common": {"multi_vo": "True"}} if vos != ("def",) else {}
    Instance(rucio, directory, sections=multi).run(PEER / "build.py", *vos)
    return directory


def copied(template: Path, directory: Path) -> Path:
    """A directory of its own with a copy of the database."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(template / "rucio.db", directory / "rucio.db")
    return directory


class Fts:
    """Takes jobs as FTS does, on loopback, and keeps the octets of each."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        fts = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fts.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps({"job_id": str(uuid.uuid4())}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    @property
    def files(self) -> list[dict[str, Any]]:
        return [file for job in self.jobs for file in job["files"]]

    def tags(self) -> dict[str, int | None]:
        """By the name of the file, its scitag."""
        return {file["metadata"]["name"]: file.get("scitag") for file in self.files}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
