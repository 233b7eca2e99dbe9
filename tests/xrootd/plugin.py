"""The plug-ins for XRootD, built by the two commands of docs/xrootd.md, once for each kind of build."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "integrations" / "xrootd"
BUILDS = ROOT / ".venv" / "build"
BUILD_SECONDS = 300
XROOTD_6 = "xrootd>=6.2,<7"
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


def built_for_clients_of_6() -> tuple[Path, Path]:
    """The client's library for XRootD 6, and where the Python bindings are that it goes with."""
    downloads = BUILDS / "xrootd-6"
    site = downloads / "site"
    with _locked(downloads):
        if not list(downloads.glob("xrootd-6.*.tar.gz")):
            _pip("install", "--no-deps", "--only-binary", ":all:", "--upgrade", "--target", site, XROOTD_6)
            (installed,) = distributions(name="xrootd", path=[str(site)])
            _pip("download", "--no-deps", "--no-binary", ":all:", "-d", downloads, f"xrootd=={installed.version}")
        (archive,) = downloads.glob("xrootd-6.*.tar.gz")
        headers = downloads / archive.name.removesuffix(".tar.gz") / "src"
        if not (headers / "XrdVersion.hh").exists():
            with tarfile.open(archive) as sources:
                sources.extractall(downloads, filter="data")
            _write_version(headers, archive.name.removeprefix("xrootd-").removesuffix(".tar.gz"))
    found = {
        "XROOTD_INCLUDE": headers,
        "XROOTD_CLIENT": site / "pyxrootd" / "libXrdCl.so",
        "XROOTD_UTILS": site / "pyxrootd" / "libXrdUtils.so",
    }
    settings = [f"-D{name}={path}" for name, path in found.items()]
    return _built("client", release="-6", settings=[*settings, "-DCMAKE_BUILD_TYPE=Debug"]), site


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"needs {XROOTD_6} from PyPI: {done.stderr.strip().splitlines()[-1:]}")


def _write_version(headers: Path, version: str) -> None:
    """What XRootD's own build would make of its XrdVersion.hh.in."""
    major, minor, patch = (int(number) for number in version.split("."))
    text = (headers / "XrdVersion.hh.in").read_text()
    values = {"STRING": f"v{version}", "NUMBER": str(major * 10000 + minor * 100 + patch), "MAJOR": str(major)}
    for name, value in values.items():
        text = text.replace(f"@XRootD_VERSION_{name}@", value)
    (headers / "XrdVersion.hh").write_text(text)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Against other runs of the tests; the directory is made."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _built(part: str, sanitizer: Sanitizer = "", *, release: str = "", settings: Sequence[str] = ()) -> Path:
    if why_not():
        pytest.skip(f"needs {why_not()}")
    directory = BUILDS / f"xrootd-{part}{release}{'-' + sanitizer if sanitizer else ''}"
    with _locked(directory):
        for command in (
            ["cmake", "-S", str(SOURCES / part), "-B", str(directory), f"-DSANITIZE={sanitizer}", *settings],
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
