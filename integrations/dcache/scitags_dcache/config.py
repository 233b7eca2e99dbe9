"""The properties of pools that make dCache tell the agent of tagged transfers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from scitags_core.errors import InvalidValue, shown
from scitags_dcache import destination, vo_mapping

ENABLE = "pool.enable.firefly"
DESTINATION = "pool.firefly.destination"
EXCLUDES = "pool.firefly.excludes"
VO_MAPPING = "pool.firefly.vo-mapping"
STATISTICS = "pool.firefly.storage-statistics"
NAMES = (ENABLE, DESTINATION, EXCLUDES, VO_MAPPING, STATISTICS)
_EXCLUDE = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?", re.ASCII)


def lines(
    mapping: dict[str, int], *, to: str = destination.AGENT, excludes: Iterable[str] = (), statistics: bool = True
) -> list[str]:
    """Lines for dcache.conf, or for a layout's sections of pools. Raises InvalidValue."""
    destination.parse(to)
    excludes = list(excludes)
    for one in excludes:
        check_exclude(one)
    values = (
        "true",
        to,
        ", ".join(excludes),
        vo_mapping.text_of(mapping),
        "true" if statistics else "false",
    )
    return [f"{name} = {value}".rstrip() for name, value in zip(NAMES, values, strict=True)]


def check_exclude(text: str) -> None:
    """Raises InvalidValue for what is no address and no network by its prefix length: such a pool does not start."""
    try:
        if not _EXCLUDE.fullmatch(text):
            raise ValueError
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidValue(f"{shown(text)} is no address and no network such as '192.0.2.0/24'") from None
