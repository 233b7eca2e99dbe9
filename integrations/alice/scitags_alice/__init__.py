"""ALICE: the tags of its transfers by type, and on the URLs that they open. `scitags alice`; docs/alice.md."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scitags_alice.transfers import activity_name, opaque, tag_of, tag_url

__all__ = ["activity_name", "opaque", "tag_of", "tag_url"]


def __getattr__(name: str) -> Any:
    # Every program that loads plug-ins takes this package in, and most use nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("scitags_alice.transfers"), name)
