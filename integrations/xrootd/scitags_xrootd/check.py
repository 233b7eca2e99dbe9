"""What is wrong with the tagging in a configuration of xrootd, with file and line."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Sequence

from scitags_core.cli.finding import Finding
from scitags_core.registry import Registry
from scitags_xrootd.config import PARAMETER, SPELLINGS
from scitags_xrootd.directives import Directive, named
from scitags_xrootd.plugin_lines import check_plugin, loading
from scitags_xrootd.pmark_lines import PmarkLines
from scitags_xrootd.server import ALL_TAGS, Version

_HTTP = re.compile(r"libXrdHttp(-\d+)?\.so$")


def check(
    directives: Sequence[Directive],
    registry: Registry,
    version: Version,
    *,
    resolve: Callable[[str], bool] | None = None,
) -> list[Finding]:
    """What is to be said of a configuration. resolve says whether a name has an address; None: names are not asked."""
    has_plugin = bool(loading(directives))
    pmark = PmarkLines(directives, registry, version, resolve or (lambda _: True))
    found = list(check_plugin(directives, registry, version))
    if not has_plugin and not pmark:
        where = directives[0].path if directives else "-"
        found.append(
            Finding("error", where, "nothing tells the agent: neither libXrdScitags.so nor xrootd.pmark is here")
        )
    elif has_plugin or version < ALL_TAGS:
        found += _check_headers(directives)
    if has_plugin and (line := pmark.line_for_fireflies()):
        text = "an agent that hears xrootd's own fireflies, too, is told of flows twice"
        found.append(Finding("warning", line.where, text))
    if pmark:
        found += pmark.findings()
    return found


def has_address(name: str) -> bool:
    """Whether this host can resolve a name."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _check_headers(directives: Sequence[Directive]) -> Iterator[Finding]:
    """Whether tags of requests by HTTP get through to who reads them."""
    lines = [one for one in named(directives, "http.header2cgi") if one.words[:1] and one.words[0].lower() == "scitag"]
    for one in lines:
        if one.words[1:] != (PARAMETER,):
            text = f"the header {one.words[0]} becomes {' '.join(one.words[1:]) or 'nothing'}, not {PARAMETER}"
            yield Finding("error", one.where, text)
    protocols = [*named(directives, "xrd.protocol"), *named(directives, "all.protocol")]
    if not any(_HTTP.search(word) for one in protocols for word in one.words):
        return
    given = {one.words[0] for one in lines}
    missing = [spelling for spelling in SPELLINGS if spelling not in given]
    if missing:
        text = (
            f"requests by HTTP that write their header {' or '.join(missing)} go untagged, as xrootd compares case:"
            f" add http.header2cgi {missing[0]} {PARAMETER}{' and so on' if missing[1:] else ''}"
        )
        where = lines[0].where if lines else directives[0].path
        yield Finding("warning" if lines else "error", where, text)
