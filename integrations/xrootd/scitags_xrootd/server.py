"""What differs between servers of XRootD: what each release's own fireflies (xrootd.pmark) can do."""

from __future__ import annotations

import re
import subprocess

from scitags_core.errors import InvalidValue, shown

Version = tuple[int, int, int]

OLDEST: Version = (5, 5, 3)  # Debian 12's, and the oldest that the plug-in was built for
HANDLERS_WITHOUT_HTTPS: Version = (5, 6, 0)  # before, http.exthandler counts only with HTTPS
ORIGIN_BY_DEFAULT: Version = (5, 6, 2)  # ffdest need not be given: fireflies then go to the client's host
ALL_TAGS: Version = (5, 6, 3)  # before, tags above 511 are taken for none
# From here on xrootd reads the header SciTag itself, and hands it on only where xrootd.pmark is set up:
# http.header2cgi, which hands it on before, has no effect on that header any more.
HEADER_BY_PMARK: Version = (5, 6, 3)
# Between the two, a third-party copy by HTTP that this server drives frees memory twice where xrootd.pmark is set up.
COPIES_BESIDE_PMARK: Version = (5, 6, 5)
FAIL_IN_DEFSFILE: Version = (5, 8, 0)  # before, "defsfile fail ..." is refused

_SECONDS = 20.0


def parse_version(text: str) -> Version:
    """5.7.1 of "v5.7.1", "5.7.1" or "5.7". Raises InvalidValue."""
    found = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:[-+~].*)?", text.strip())
    if not found:
        raise InvalidValue(f"{shown(text)} is no version of XRootD: give it as 5.5.3")
    major, minor, patch = (int(part or 0) for part in found.groups())
    return major, minor, patch


def installed() -> Version | None:
    """That of the xrootd on this host; None where there is none, or it does not say."""
    try:
        done = subprocess.run(
            ["xrootd", "-v"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        return parse_version((done.stdout + done.stderr).strip().splitlines()[0])
    except (OSError, subprocess.TimeoutExpired, InvalidValue, IndexError):
        return None
