"""Database sessions as each Rucio wants them: handed over, or made by every function by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def writing() -> Iterator[dict[str, Any]]:
    """The keyword arguments that give Rucio's functions one session to write with."""
    try:
        from rucio.db.sqla.constants import DatabaseOperationType
        from rucio.db.sqla.session import db_session
    except ImportError:
        yield {}
    else:
        with db_session(DatabaseOperationType.WRITE) as session:
            yield {"session": session}
