"""Become another program."""

from __future__ import annotations

import os
import sys

NOT_FOUND = 127


def execute(command: list[str]) -> int:
    """Run a command in place of this process; the exit status when that cannot be."""
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)  # noqa: S606  (the user's own command)
    except OSError as error:
        print(f"scitags: {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
