"""XRootD: tags on what the Python bindings open, and `scitags xrootd`.

    with scitags_xrootd.tagging(tag): ...                  all that is opened and copied in the block
    scitags_xrootd.open_file(file, url, tag)               one File.open
    scitags_xrootd.add_job(copies, source, target, tag)    one job of a CopyProcess

The bindings (module XRootD) are used as they are installed; nothing of them is taken in before a block begins.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scitags_xrootd.bindings import add_job, open_file, tagged_url, tagging

__all__ = ["add_job", "open_file", "tagged_url", "tagging"]


def __getattr__(name: str) -> Any:
    # Every program that loads plug-ins takes this package in, and most use nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("scitags_xrootd.bindings"), name)
