"""What clients do, as processes on a host."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scitags_demo.authority import Authority
from tests.netns.namespaces import Namespace

SECONDS = 60
# The network between tests is quick, and a client that waits for something is to say so.
XRDCP = ["xrdcp", "--nopbar", "--force", "--retry", "0"]


def run(namespace: Namespace, command: Sequence[str | Path]) -> str:
    """Its output; fails when the command does."""
    return here("nsenter", f"--net={namespace.path}", "--", *command)


def here(*command: str | Path, statuses: Sequence[int] = (0,)) -> str:
    """As run, on this host itself; any of these exit statuses will do."""
    environment = {**os.environ, "XRD_CONNECTIONRETRY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    assert done.returncode in statuses, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if done.returncode else "")


def xrdcp(namespace: Namespace, *arguments: str | Path) -> str:
    return run(namespace, [*XRDCP, *arguments])


def logged(log: Path, command: Sequence[str | Path]) -> list[str | Path]:
    """A command of XRootD's client, which then says into a file what it does."""
    return ["env", "XRD_LOGLEVEL=Debug", f"XRD_LOGFILE={log}", *command]


def connections_made(log: Path) -> int:
    """How many a client that was logged has had to the one server that it asked.

    A server that is asked to bind several streams at the same moment refuses some now and then ("kXR_bind request
    failed"), and the client goes on without them.
    """
    return len(set(re.findall(r"Stream (\d+) connected", log.read_text())))


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


def python(code: str, *arguments: str, namespace: Namespace | None = None) -> str:
    """With the system's Python, which has XRootD's bindings."""
    command = ["/usr/bin/python3", "-c", code, *arguments]
    return run(namespace, command) if namespace else here(*command)
