"""What the `scitags` command and the integrations take from configuration: registry and aliases.

# the file in $SCITAGS_CONFIG, else ~/.config/scitags/scitags.toml, else /etc/scitags/scitags.toml
[registry]
url = "https://www.scitags.org/api.json"
timeout = 10.0                    # seconds, for the whole fetch
cache_dir = "/var/cache/scitags"

[aliases.experiments]
"belle2" = "belleii"
[aliases.activities.atlas]        # or of "*", all experiments
"DataChallenge" = "Data Challenge"
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from scitags_core.registry import Aliases
from scitags_core.registry_client import DEFAULT_TIMEOUT, DEFAULT_URL, RegistryClient
from scitags_core.strict import convert, read_toml

CONFIG_VARIABLE = "SCITAGS_CONFIG"
SYSTEM_FILE = Path("/etc/scitags/scitags.toml")


class RegistrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the registry is had from; timeout in seconds."""

    url: str = DEFAULT_URL
    timeout: Annotated[float, msgspec.Meta(gt=0)] = DEFAULT_TIMEOUT
    cache_dir: str = ""

    def client(self) -> RegistryClient:
        return RegistryClient(
            self.url, cache_dir=Path(self.cache_dir) if self.cache_dir else None, timeout=self.timeout
        )


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of scitags.toml."""

    registry: RegistrySettings = RegistrySettings()
    aliases: Aliases = Aliases()


def load() -> Settings:
    """The settings in force: the first file of those named above that exists. Raises ConfigError."""
    own = os.environ.get(CONFIG_VARIABLE)
    if own:
        return read(Path(own))
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    for path in (base / "scitags" / "scitags.toml", SYSTEM_FILE):
        if path.is_file():
            return read(path)
    return Settings()


def read(path: Path) -> Settings:
    """The settings in one file. Raises ConfigError."""
    return convert(read_toml(path), Settings, str(path))
