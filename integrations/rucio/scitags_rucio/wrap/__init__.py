"""The policy package for a site that has its own: [policy] package = scitags_rucio.wrap.PACKAGE

scitags_rucio.wrap.PACKAGE is the very module PACKAGE, and scitags_rucio.wrap.PACKAGE.permission the very module
PACKAGE.permission. Rucio gets all that it asks for from the site's package, which is not changed and need not know.
A package that is missing or fails is missing or fails in Rucio's eyes as it would without us.
"""

from __future__ import annotations

import sys

from scitags_rucio import enable
from scitags_rucio.alias import AliasFinder

_PREFIX = f"{__name__}."


def _real(name: str) -> str:
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""


sys.meta_path.insert(0, AliasFinder(_real))
enable()
