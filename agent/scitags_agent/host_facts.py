"""What the kernel says of this host and this process, in its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# The old CAP_SYS_ADMIN stands for the two that were taken out of it.
_ADMINS = {"CAP_PERFMON", "CAP_BPF"}


def missing_rights(wanted: Mapping[int, str]) -> set[str]:
    """Those of these capabilities, by their bits, that this process has not."""
    effective = int(field("/proc/self/status", "CapEff:") or "0", 16)
    missing = {name for bit, name in wanted.items() if not effective >> bit & 1}
    return missing - _ADMINS if effective >> 21 & 1 else missing


def sysctl(name: str) -> str:
    """Its value; empty when there is none."""
    return read(f"/proc/sys/{name}")


def field(path: str, name: str) -> str:
    """What stands behind a name in a file of lines; empty when it is not there."""
    return next((line.split()[1] for line in read(path).splitlines() if line.startswith(name)), "")


def read(path: str) -> str:
    """A file of the kernel's; empty when it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
