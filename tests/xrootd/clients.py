"""What clients do, as processes on a host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.netns.namespaces import Namespace
from tests.xrootd.certificate import Authority

SECONDS = 60
# The network between tests is quick, and a client that waits for something is to say so.
XRDCP = ["xrdcp", "--nopbar", "--force", "--retry", "0"]


def run(namespace: Namespace, command: Sequence[str | Path]) -> str:
    """Its output; fails when the command does."""
    inside = ["nsenter", f"--net={namespace.path}", "--", *map(str, command)]
    environment = {**os.environ, "XRD_CONNECTIONRETRY": "1"}
    done = subprocess.run(inside, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def xrdcp(namespace: Namespace, *arguments: str | Path) -> str:
    return run(namespace, [*XRDCP, *arguments])


def curl(namespace: Namespace, authority: Authority, *arguments: str | Path) -> str:
    options: list[str | Path] = [
        "--silent",
        "--show-error",
        "--fail",
        "--globoff",
        "--location",
        "--cacert",
        authority.certificate,
    ]
    return run(namespace, ["curl", *options, *arguments])
