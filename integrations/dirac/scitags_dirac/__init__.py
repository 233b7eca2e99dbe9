"""DIRAC 9: the tags of its FTS jobs from our registry, and tags on what it moves itself.

    enable()    for this process, whether DIRAC's modules are loaded yet or not
    disable()   as DIRAC came

`scitags dirac enable` does the former for every process of the Python that DIRAC is in.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scitags_dirac.patches import disable, enable
    from scitags_dirac.scitag import get_scitag

__all__ = ["disable", "enable", "get_scitag"]


def __getattr__(name: str) -> Any:
    # Every program that loads plug-ins takes this package in, and most use nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("scitags_dirac.scitag" if name == "get_scitag" else "scitags_dirac.patches"), name)
