"""What the fireflies of a release of dCache lack (recordings of 10.2.25, 11.1.10, 11.2.5 and 12.0.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scitags_core.cli.finding import Severity
from scitags_core.errors import InvalidValue, shown

Release = tuple[int, int]
WITH_TAGS: Release = (11, 0)
WITH_VOS: Release = (11, 2)


def parse(text: str) -> Release:
    """The first two numbers, as in 11.2.5. Raises InvalidValue."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", text, re.ASCII)
    if not found:
        raise InvalidValue(f"release {shown(text)} is not of the form 11.2.5")
    return int(found[1]), int(found[2])


def judge(release: Release) -> Iterator[tuple[Severity, str]]:
    """What there is to say of a release."""
    name = ".".join(map(str, release))
    if release < WITH_TAGS:
        text = "every firefly says experiment 0 and activity 14, whatever the tag, so that nothing can be marked"
        yield "error", f"release {name}: {text}; 11.2 is the first that tells all"
    elif release < WITH_VOS:
        text = "vo-mapping finds no VO, as those of FQANs begin with a slash: only transfers that bring a tag have one"
        yield "warning", f"release {name}: {text}; 11.2 is the first that does"
