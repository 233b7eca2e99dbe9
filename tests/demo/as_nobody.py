"""`python as_nobody.py COMMAND...`: run a command as the user nobody, who can read no more than is named here.

What this interpreter and this checkout need may lie below directories that only root can enter. In a mount namespace
of its own, each such directory is replaced by one that all can enter and that holds nothing else.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

NOBODY = 65534
CLONE_NEWNS, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x00020000, 0x1000, 0x2000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} {target}")


def closed_ancestor(path: Path) -> Path | None:
    """The topmost directory on the way that others may not enter."""
    for ancestor in reversed(path.parents):
        if not ancestor.stat().st_mode & 0o001:
            return ancestor
    return None


def open_up(path: Path) -> None:
    """Make the path reachable, and nothing beside it."""
    while (closed := closed_ancestor(path)) is not None:
        shell = Path(tempfile.mkdtemp(dir="/tmp"))
        mount("tmpfs", str(shell), "tmpfs", 0)
        shell.chmod(0o755)
        inside = shell / path.relative_to(closed)
        inside.mkdir(parents=True)
        mount(str(path), str(inside), None, MS_BIND | MS_REC)
        mount(str(shell), str(closed), None, MS_MOVE)
        shell.rmdir()


def main() -> None:
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    checkout = Path(__file__).resolve().parents[2]
    # The outermost first: what opens an inner one alone hides the rest of the outer.
    for path in sorted({checkout, Path(sys.prefix), Path(sys.base_prefix)}, key=lambda one: len(one.parts)):
        open_up(path)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
