"""The plug-ins for XRootD, built once for each kind of build; without what that needs, tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from scitags_demo import xrootd_plugin
from scitags_demo.xrootd_plugin import Sanitizer

ROOT = Path(__file__).parent.parent.parent


def why_not() -> str:
    """What is missing from the system; empty when nothing is."""
    return ", ".join(xrootd_plugin.missing())


def built(sanitizer: Sanitizer = "") -> Path:
    """The server's library, up to date; skips where it cannot be built."""
    return _built("ofs", sanitizer)


def built_for_clients() -> Path:
    """The client's library, likewise."""
    return _built("client")


def _built(part: xrootd_plugin.Part, sanitizer: Sanitizer = "") -> Path:
    if why_not():
        pytest.skip(f"needs {why_not()}")
    # The sanitizers make the compiler see more, and less well.
    return xrootd_plugin.build(part, sanitizer, warnings_are_errors=not sanitizer)


def rules_program() -> Path:
    """The program that says which tag the rules give."""
    return built().parent / "scitags-xrootd-tag"
