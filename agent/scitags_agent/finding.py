"""What the doctor finds: one thing that was looked at, and how to mend it."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["good", "note", "bad"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. bad: something that is configured will not work."""

    subject: str
    verdict: Verdict
    text: str
    remedy: str = ""


def worst(findings: list[Finding]) -> Verdict:
    """The gravest of all."""
    order: list[Verdict] = ["good", "note", "bad"]
    return max((one.verdict for one in findings), key=order.index, default="good")
