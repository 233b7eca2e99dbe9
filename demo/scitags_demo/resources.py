"""What is made for a demonstration and goes with it, however it ends."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from scitags_demo.network import module_command

LONGEST_BASE = 64  # the path of a Unix socket has 107 octets


@contextmanager
def cleaned_up() -> Iterator[ExitStack]:
    """Resources that are closed whatever ends us but SIGKILL, and no further signal stops their closing."""
    resources = ExitStack()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield resources
    finally:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        resources.close()
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (a signal handler's arguments)
    sys.exit(128 + number)


def own_directory(resources: ExitStack, *, keep: bool, passable: bool = False) -> Path:
    """A directory of our own; unless kept it goes with us, even when we are killed.

    passable: who knows the way to something in it may go there, whoever it is.
    """
    usual = Path(tempfile.gettempdir())
    is_fit = len(str(usual)) <= LONGEST_BASE and (not passable or _is_passable(usual))
    directory = Path(tempfile.mkdtemp(prefix="scitags-demo-", dir=usual if is_fit else "/tmp"))  # noqa: S108  (ours alone)
    if passable:
        directory.chmod(0o711)
    if keep:
        return directory
    sweeper = subprocess.Popen(  # noqa: S603  (our own command)
        module_command("scitags_demo.sweep", str(directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is typed at the terminal does not reach it
    )

    def sweep() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        assert sweeper.stdin is not None
        sweeper.stdin.close()
        sweeper.wait()

    resources.callback(sweep)
    return directory


def _is_passable(directory: Path) -> bool:
    return all(one.stat().st_mode & stat.S_IXOTH for one in (directory, *directory.parents))


def last_line(log: Path) -> str:
    """What a process said last, for the message that it failed."""
    lines: list[str] = []
    with suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"
