"""The policy package for a site that has none: [policy] package = scitags_rucio.policy

Everything but the tags is as in a Rucio without policy package: permission and schema are Rucio's own. Also for
`lfn2pfn_module`, which a client always imports (see docs/rucio.md).
"""

from __future__ import annotations

import configparser
import os
import sys
from typing import Any

from scitags_rucio import enable, versions
from scitags_rucio.alias import AliasFinder

# Where Rucio looks for a module of a policy package, where it has such modules itself, and by which options one of
# them is chosen. Some versions ask for these modules in vain and go on, some do not go on.
_OWN = {
    f"{__name__}.permission": ("rucio.core.permission", (("permission", "policy"), ("policy", "permission"))),
    f"{__name__}.schema": ("rucio.common.schema", (("policy", "schema"),)),
}


def get_algorithms() -> dict[str, dict[str, Any]]:
    """What Rucio asks a policy package for: no algorithms of ours."""
    return {}


def __getattr__(name: str) -> Any:
    # A Rucio that is not in the range would refuse to start. It shall start, untagged: then none is stated.
    if name == "SUPPORTED_VERSION" and versions.is_supported(versions.rucio_version()):
        return versions.supported_for_rucio()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _real(name: str) -> str:
    """The module of Rucio's that stands for one of ours, as a Rucio without policy package would choose it."""
    if name not in _OWN:
        return ""
    from rucio.common.config import get_config  # noqa: PLC0415  (complete when Rucio asks for these modules)

    home, options = _OWN[name]
    parser = get_config()
    generic = "generic_multi_vo" if _is_multi_vo(parser) else "generic"
    chosen = os.environ.get("POLICY", "") if home.endswith("permission") else ""
    for section, option in options:
        chosen = chosen or parser.get(section, option, fallback="", raw=True)
    return f"{home}.{chosen.lower() if chosen and chosen != 'def' else generic}"


def _is_multi_vo(parser: configparser.ConfigParser) -> bool:
    try:
        return parser.getboolean("common", "multi_vo", fallback=False)
    except ValueError:
        return False


sys.meta_path.insert(0, AliasFinder(_real))
enable()
