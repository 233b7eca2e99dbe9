"""FTS: every file of a transfer job bears its activity's tag.

Tagger tags jobs, as dicts or as JSON. new_transfer, new_job and enable do it for the official client, fts3, which
stays as it is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scitags_fts.client import disable, enable, new_job, new_transfer
    from scitags_fts.jobs import JobError, Tagger, check_job

__all__ = ["JobError", "Tagger", "check_job", "disable", "enable", "new_job", "new_transfer"]

_OF_CLIENT = frozenset({"disable", "enable", "new_job", "new_transfer"})


def __getattr__(name: str) -> Any:
    # Every program that loads plug-ins takes this package in, and most use nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("scitags_fts.client" if name in _OF_CLIENT else "scitags_fts.jobs"), name)
