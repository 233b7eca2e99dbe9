"""What a check has to say of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from scitags_core.cli.output import json_line

Severity = Literal["error", "warning", "note"]


class Finding(msgspec.Struct, frozen=True):
    """error: tags are lost, or the storage does not start; warning: some are lost; note: something to know."""

    severity: Severity
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.severity}: {self.text}"


def tell(findings: Sequence[Finding], checked: str, *, as_json: bool) -> int:
    """Print what there is to say of what was checked; the exit status, which is 1 when there is an error."""
    if as_json:
        print(json_line(findings))
    elif findings:
        print(*findings, sep="\n")
    else:
        print(f"{checked}: nothing to say")
    return 1 if any(one.severity == "error" for one in findings) else 0
