"""What is wrong with the tagging in a configuration of xrootd, with file and line."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from scitags_core.cli.finding import Finding
from scitags_core.registry import Registry
from scitags_xrootd.directives import Directive
from scitags_xrootd.header_lines import check_headers
from scitags_xrootd.plugin_lines import check_plugin, loading
from scitags_xrootd.pmark_lines import PmarkLines
from scitags_xrootd.server import ALL_TAGS, Version


def check(
    directives: Sequence[Directive],
    registry: Registry,
    version: Version,
    *,
    resolve: Callable[[str], bool] | None = None,
) -> list[Finding]:
    """What is to be said of a configuration. resolve says whether a name has an address; None: names are not asked."""
    has_plugin = bool(loading(directives))
    pmark = PmarkLines(directives, registry, version, resolve or (lambda _: True), has_plugin=has_plugin)
    found = list(check_plugin(directives, registry, version))
    if not has_plugin and not pmark:
        where = directives[0].path if directives else "-"
        found.append(
            Finding("error", where, "nothing tells the agent: neither libXrdScitags.so nor xrootd.pmark is here")
        )
    elif has_plugin or version < ALL_TAGS:
        found += check_headers(directives, pmark, version)
    if has_plugin and (line := pmark.line_for_fireflies()) and not pmark.is_silent:
        text = (
            "an agent that hears xrootd's own fireflies, too, is told of flows twice: with xrootd.pmark use firefly"
            " noscitag, and without its maps, xrootd sends none"
        )
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
