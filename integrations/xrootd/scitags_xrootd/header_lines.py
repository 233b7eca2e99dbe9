"""Whether tags in headers of requests by HTTP get through to who reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from scitags_core.cli.finding import Finding
from scitags_xrootd.config import PARAMETER, SILENT_PMARK, SPELLINGS
from scitags_xrootd.directives import Directive, named
from scitags_xrootd.pmark_lines import PmarkLines
from scitags_xrootd.server import HEADER_BY_PMARK, Version

_HTTP = re.compile(r"libXrdHttp(-\d+)?\.so$")


def check_headers(directives: Sequence[Directive], pmark: PmarkLines, version: Version) -> Iterator[Finding]:
    """Findings of what hands the header SciTag on, which differs between releases (docs/xrootd.md)."""
    lines = [one for one in named(directives, "http.header2cgi") if one.words[:1] and one.words[0].lower() == "scitag"]
    protocols = [*named(directives, "xrd.protocol"), *named(directives, "all.protocol")]
    http = next((one for one in protocols if any(_HTTP.search(word) for word in one.words)), None)
    if version < HEADER_BY_PMARK:
        yield from _check_header2cgi(lines, http)
    elif http is not None and not pmark.hands_header_on:
        yield _without_pmark(pmark.line_in_the_way() or (lines[0] if lines else http))


def _check_header2cgi(lines: Sequence[Directive], http: Directive | None) -> Iterator[Finding]:
    for one in lines:
        if one.words[1:] != (PARAMETER,):
            text = f"the header {one.words[0]} becomes {' '.join(one.words[1:]) or 'nothing'}, not {PARAMETER}"
            yield Finding("error", one.where, text)
    given = {one.words[0] for one in lines}
    missing = [spelling for spelling in SPELLINGS if spelling not in given]
    if http is not None and missing:
        text = (
            f"requests by HTTP that write their header {' or '.join(missing)} go untagged, as xrootd compares case:"
            f" add http.header2cgi {missing[0]} {PARAMETER}{' and so on' if missing[1:] else ''}"
        )
        yield Finding("warning" if lines else "error", (lines[0] if lines else http).where, text)


def _without_pmark(one: Directive) -> Finding:
    has_no_effect = "; http.header2cgi has no effect on it" if one.name == "http.header2cgi" else ""
    text = (
        "requests by HTTP go untagged: this server reads the header SciTag itself, and hands it on only where"
        f" xrootd.pmark is set up for fireflies{has_no_effect}: write {', '.join(SILENT_PMARK)}, which send none"
    )
    return Finding("error", one.where, text)
