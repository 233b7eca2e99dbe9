"""What a check has to say of a configuration."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True):
    """error: tags are lost, or xrootd does not start; warning: some are lost; note: something to know."""

    severity: Severity
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.severity}: {self.text}"
