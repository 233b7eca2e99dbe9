"""Environments for real programs of others, such as Rucio: one for each, made once, beside our own.

They are kept out of our environment, as what they depend on is theirs to choose.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from scitags_demo.errors import DemoError

INSTALL_SECONDS = 900
SYSTEM_PYTHON = Path("/usr/bin/python3")


def make(
    peers: Path,
    name: str,
    requirements: Sequence[str],
    *,
    system_packages: bool = False,
    builders: Sequence[str] = (),
    alone: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """The interpreter of the environment peers/name, which holds these requirements beside what our core needs.

    It is made when it is not there, or was made from other requirements; say is told then. With system_packages it is
    the system's Python, and sees what the system's packages bring. builders are installed before the rest, for
    requirements that are built without isolation. alone are installed without what they ask for, which the others name
    as far as it is needed. Raises DemoError with what pip said.
    """
    directory = peers / name
    wanted = ["msgspec", "pluggy", *requirements]
    stamp = hashlib.sha256("\n".join([str(system_packages), *wanted, *builders, *alone]).encode()).hexdigest()
    peers.mkdir(parents=True, exist_ok=True)
    with (peers / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = directory / "stamp"
        if not made.is_file() or made.read_text() != stamp:
            say(f"An environment for {' '.join(requirements)} in {directory} (once, about a minute) ...")
            rounds = [[*builders], wanted, ["--no-deps", *alone] if alone else []]
            _make(directory, [one for one in rounds if one], system_packages=system_packages)
            made.write_text(stamp)
    return directory / "bin" / "python"


def _make(directory: Path, rounds: list[list[str]], *, system_packages: bool) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    python = SYSTEM_PYTHON if system_packages else Path(sys.executable)
    options = ["--system-site-packages"] if system_packages else []
    steps = [
        [str(python), "-m", "venv", *options, str(directory)],
        *([str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted] for wanted in rounds),
    ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DemoError(f"{' '.join(step)}: {error}") from None
        if done.returncode != 0:
            raise DemoError(f"{' '.join(step)}: {done.stdout}{done.stderr}")
