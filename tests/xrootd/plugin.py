"""The plug-ins for XRootD, built once for each kind of build; without what that needs, tests skip."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

import pytest

from scitags_demo import xrootd_plugin
from scitags_demo.xrootd_plugin import BUILD_SECONDS, BUILDS, Sanitizer

ROOT = Path(__file__).parent.parent.parent
XROOTD_6 = "xrootd>=6.2,<7"


def why_not() -> str:
    """What is missing from the system; empty when nothing is."""
    return ", ".join(xrootd_plugin.missing())


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
            # Not by tarfile, which has its filter from Python 3.11.4 on: Debian 12 has 3.11.2.
            subprocess.run(["tar", "--extract", "--file", archive, "--directory", downloads], check=True)
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


def _built(
    part: xrootd_plugin.Part, sanitizer: Sanitizer = "", *, release: str = "", settings: Sequence[str] = ()
) -> Path:
    if why_not():
        pytest.skip(f"needs {why_not()}")
    # The sanitizers make the compiler see more, and less well.
    return xrootd_plugin.build(part, sanitizer, release=release, settings=settings, warnings_are_errors=not sanitizer)


def rules_program() -> Path:
    """The program that says which tag the rules give."""
    return built().parent / "scitags-xrootd-tag"
