"""What is worth saying is said once: a daemon makes the same decision thousands of times a minute."""

from __future__ import annotations

import logging

log = logging.getLogger("scitags_rucio")

_MOST = 1000  # what a process remembers to have said; names of activities come from users
_said: set[str] = set()


def warn(message: str) -> None:
    """Log a warning, the first time that it is given."""
    _say(logging.WARNING, message)


def inform(message: str) -> None:
    """Log for the record, the first time that it is given."""
    _say(logging.INFO, message)


def _say(level: int, message: str) -> None:
    if message not in _said and len(_said) < _MOST:
        _said.add(message)
        log.log(level, "scitags: %s", message)
