"""gfal2: the tag on copies, by its command and by its Python bindings.

plan(source, destination, tag)      what to pass: URLs and options
tagged(context, source, destination, tag)   the same for gfal2's own Python bindings
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scitags_gfal2.bindings import tagged
    from scitags_gfal2.copies import Copy, plan

__all__ = ["Copy", "plan", "tagged"]


def __getattr__(name: str) -> Any:
    # Every program that loads plug-ins takes this package in, and most use nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("scitags_gfal2.bindings" if name == "tagged" else "scitags_gfal2.copies"), name)
