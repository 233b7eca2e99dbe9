"""Cards that leave packets with extension headers to the processor, and the doctor's word for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scitags_agent import offloads
from scitags_agent.config import read
from scitags_agent.doctor import examine
from scitags_agent.offloads import features, leaves_headers_to_the_processor
from scitags_core.plugins import PluginHost

IPV6_ALONE = {"tx-checksum-ipv6": True, "tx-checksum-ip-generic": False}
ANYTHING = {"tx-checksum-ipv6": False, "tx-checksum-ip-generic": True}


@pytest.mark.parametrize(
    ("enabled", "is_so"),
    [
        (IPV6_ALONE, True),
        (ANYTHING, False),
        ({"tx-checksum-ipv6": True, "tx-checksum-ip-generic": True}, False),
        ({"tx-checksum-ipv6": False, "tx-checksum-ip-generic": False}, False),  # sums nothing, headers or not
        ({}, False),
    ],
)
def test_which_leave_them(enabled: dict[str, bool], is_so: bool) -> None:
    assert leaves_headers_to_the_processor(enabled) == is_so


def test_what_the_kernel_says_of_an_interface() -> None:
    """The loopback offers NETIF_F_HW_CSUM on every kernel (drivers/net/loopback.c)."""
    assert features("lo")["tx-checksum-ip-generic"]
    assert not leaves_headers_to_the_processor(features("lo"))
    with pytest.raises(OSError, match="No such device"):
        features("scitags-none")


@pytest.mark.parametrize(("enabled", "noted"), [(IPV6_ALONE, ["card lo"]), (ANYTHING, [])])
def test_the_doctor_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: dict[str, bool], noted: list[str]
) -> None:
    monkeypatch.setattr(offloads, "features", lambda name: {"lo": enabled}[name])
    config = tmp_path / "agent.toml"
    config.write_text(
        '[[source]]\nkind = "unix"\n[[backend]]\nkind = "extension_header"\ninterfaces = ["lo"]\n'
        f'[agent]\nstate_directory = "{tmp_path}"\n'
    )
    found = [one for one in examine(read(config, PluginHost.load())) if one.subject.startswith("card ")]
    assert [one.subject for one in found] == noted
    assert {one.verdict for one in found} <= {"note"}
