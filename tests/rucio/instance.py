"""Real Rucio instances on SQLite, in environments of their own, and what stands for FTS."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from scitags_demo.chain import rucio as real
from scitags_demo.chain.jobs import JobServer
from scitags_demo.chain.rucio import Rucio, Sections

__all__ = ["Rucio", "Sections"]

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).parent / "peer"


class Instance(real.Instance):
    """A Rucio instance that finds the packages of this checkout, and the peer's scripts."""

    def __init__(self, rucio: Rucio, directory: Path, *, sections: Sections) -> None:
        path = os.pathsep.join(str(ROOT / one) for one in (".", "integrations/rucio"))
        super().__init__(rucio, directory, sections=sections, python_path=path)

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
    multi: Sections = {"common": {"multi_vo": "True"}} if vos != ("def",) else {}
    Instance(rucio, directory, sections=multi).run(PEER / "build.py", *vos)
    return directory


def copied(template: Path, directory: Path) -> Path:
    """A directory of its own with a copy of the database."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(template / "rucio.db", directory / "rucio.db")
    return directory


class Fts(JobServer):
    """Stands for FTS, and tells what was posted."""

    @property
    def bodies(self) -> list[bytes]:
        """The octets of each job."""
        return self.queue.bodies

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    @property
    def files(self) -> list[dict[str, Any]]:
        return [file for job in self.jobs for file in job["files"]]

    def tags(self) -> dict[str, int | None]:
        """By the name of the file, its scitag."""
        return {file["metadata"]["name"]: file.get("scitag") for file in self.files}
