"""Which Rucio this is, and whether what we change in it is known to be there."""

from __future__ import annotations

import re
import sys
from types import ModuleType

from scitags_rucio import NEWEST_MAJOR, OLDEST_MAJOR, SUPPORTED_VERSION


def rucio_version() -> str:
    """The version of the Rucio that is installed, such as "41.5.1". ImportError without one."""
    # A leaf among Rucio's modules: safe to import from inside its circular imports.
    from rucio.version import version_string  # noqa: PLC0415

    return str(version_string())


def is_supported(version: str) -> bool:
    """Whether a version of Rucio is one that we know: its first number is OLDEST_MAJOR..NEWEST_MAJOR."""
    found = re.match(r"[0-9]+", version, re.ASCII)
    return found is not None and OLDEST_MAJOR <= int(found[0]) <= NEWEST_MAJOR


def supported_for_rucio() -> str | list[str]:
    """SUPPORTED_VERSION in the form that the Rucio in this process compares with its own.

    Rucio reads a version specifier; until it did, it looked its first number up in a list.
    """
    modules = (sys.modules.get("rucio.common.plugins"), sys.modules.get("rucio.common.utils"))
    if any(isinstance(module, ModuleType) and hasattr(module, "SpecifierSet") for module in modules):
        return SUPPORTED_VERSION
    return [str(major) for major in range(OLDEST_MAJOR, NEWEST_MAJOR + 1)]
