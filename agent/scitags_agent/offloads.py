"""What network cards do with packets that have an extension header, which some leave to the processor.

A card that sums TCP over IPv6 alone (NETIF_F_IPV6_CSUM), and not whatever it is told to (NETIF_F_HW_CSUM), does not see
past an extension header: Linux then cuts and sums such packets itself (gso_features_check in net/core/dev.c).
"""

from __future__ import annotations

from collections.abc import Mapping

IPV6_ALONE = "tx-checksum-ipv6"
ANYTHING = "tx-checksum-ip-generic"


def features(interface: str) -> dict[str, bool]:
    """The interface's features, as `ethtool -k` names them, and whether they are on. Raises OSError without one."""
    from pyroute2 import Ethtool  # noqa: PLC0415

    ethtool = Ethtool()
    try:
        return {name: bool(one.enable) for name, one in ethtool.get_features(interface).features.items() if name}
    finally:
        ethtool.close()


def leaves_headers_to_the_processor(enabled: Mapping[str, bool]) -> bool:
    """Whether a card with these features has packets with an extension header cut and summed by the processor."""
    return enabled.get(IPV6_ALONE, False) and not enabled.get(ANYTHING, False)
