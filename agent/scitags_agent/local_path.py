"""Files that other programs of this host meet us at: their directory, mode and group."""

from __future__ import annotations

import grp
import os
import re
from pathlib import Path

from scitags_core.errors import ConfigError, shown

_MODE = re.compile("[0-7]{3,4}")


def parse_mode(text: str) -> int:
    """A file mode from its octal text, 000..0777. Raises ConfigError."""
    if not _MODE.fullmatch(text) or int(text, 8) > 0o777:  # noqa: PLR2004
        raise ConfigError(f"mode {shown(text)} is not an octal file mode such as '0660'")
    return int(text, 8)


def group_id(name: str) -> int:
    """The id of a group by its name; -1, which leaves a file's group alone, for the empty name."""
    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {shown(name)}") from None


def admit(path: Path, mode: int, group: int) -> None:
    """Set who may use the file; the umask has no say. Raises OSError."""
    if group >= 0:
        os.chown(path, -1, group)
    path.chmod(mode)
