"""The plug-ins for XRootD, built by the two commands of docs/xrootd.md, once for each kind of build."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scitags_demo.errors import DemoError

SOURCES = Path(__file__).parents[2] / "integrations" / "xrootd"
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
BUILDS = Path(sys.prefix) / "build"
BUILD_SECONDS = 900
Part = Literal["ofs", "client"]
Sanitizer = Literal["", "address", "thread"]


def missing() -> list[str]:
    """What building and using the plug-ins needs and the system lacks."""
    programs = ("cmake", "g++", "xrootd", "xrdcp", "curl", "openssl")
    headers = (
        "xrootd/XrdSfs/XrdSfsInterface.hh",
        "xrootd/XrdCl/XrdClPlugInInterface.hh",
        "xrootd/private/XrdHttp/XrdHttpExtHandler.hh",
        "nlohmann/json.hpp",
    )
    return [
        *(name for name in programs if shutil.which(name) is None),
        *(name for name in headers if not Path("/usr/include", name).exists()),
        *([] if SOURCES.is_dir() else [f"a checkout of scitags-suite ({SOURCES})"]),
    ]


def build(
    part: Part,
    sanitizer: Sanitizer = "",
    *,
    release: str = "",
    settings: Sequence[str] = (),
    warnings_are_errors: bool = False,
) -> Path:
    """The library of the server's plug-in (ofs) or the client's, up to date. Raises DemoError with what was said.

    settings are cmake's, for a release of XRootD that is not the system's; release then sets its build apart.
    """
    directory = BUILDS / f"xrootd-{part}{release}{'-' + sanitizer if sanitizer else ''}"
    directory.mkdir(parents=True, exist_ok=True)
    # A make that runs us would share out its jobs, and complain that cmake's is told of jobs of its own.
    environment = {name: value for name, value in os.environ.items() if name not in _OF_MAKE}
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ["cmake", "-S", str(SOURCES / part), "-B", str(directory), f"-DSANITIZE={sanitizer}", *settings],
            ["cmake", "--build", str(directory), "--parallel", "2"],
        ):
            try:
                done = subprocess.run(  # noqa: S603  (cmake)
                    command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise DemoError(str(error)) from None
            if done.returncode != 0 or (warnings_are_errors and "warning" in done.stderr):
                raise DemoError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return next(directory.glob("libXrd*Scitags-*.so"))
