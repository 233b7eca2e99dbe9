"""The plug-ins for XRootD, built by the two commands of docs/xrootd.md, once for each kind of build."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "integrations" / "xrootd"
BUILDS = ROOT / ".venv" / "build"
BUILD_SECONDS = 300
Sanitizer = Literal["", "address", "thread"]


def why_not() -> str:
    """What is missing from the system; empty when nothing is."""
    programs = [name for name in ("cmake", "g++", "xrootd", "xrdcp", "curl", "openssl") if shutil.which(name) is None]
    headers = [
        name
        for name in (
            "xrootd/XrdSfs/XrdSfsInterface.hh",
            "xrootd/XrdCl/XrdClPlugInInterface.hh",
            "xrootd/private/XrdHttp/XrdHttpExtHandler.hh",
            "nlohmann/json.hpp",
        )
        if not Path("/usr/include", name).exists()
    ]
    return ", ".join([*programs, *headers])


def built(sanitizer: Sanitizer = "") -> Path:
    """The server's library, up to date; skips where it cannot be built."""
    return _built("ofs", sanitizer)


def built_for_clients() -> Path:
    """The client's library, likewise."""
    return _built("client")


def _built(part: str, sanitizer: Sanitizer = "") -> Path:
    if why_not():
        pytest.skip(f"needs {why_not()}")
    directory = BUILDS / f"xrootd-{part}{'-' + sanitizer if sanitizer else ''}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", str(SOURCES / part), "-B", str(directory), f"-DSANITIZE={sanitizer}"],
            ["cmake", "--build", str(directory), "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            # The sanitizers make the compiler see more, and less well.
            assert sanitizer or "warning" not in done.stderr, done.stderr
    return next(directory.glob("libXrd*Scitags-*.so"))


def rules_program() -> Path:
    """The program that says which tag the rules give."""
    return built().parent / "scitags-xrootd-tag"
