"""The lines that a site puts into xrootd's configuration, for the plug-in or for xrootd's own fireflies."""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core.errors import InvalidValue, shown
from scitags_xrootd.mapping import Rule, one_word
from scitags_xrootd.server import ALL_TAGS, COPIES_BESIDE_PMARK, HEADER_BY_PMARK, ORIGIN_BY_DEFAULT, Version

LIBRARY = "libXrdScitags.so"
# header2cgi compares letter for letter, and clients write the header in each of these ways.
SPELLINGS = ("SciTag", "Scitag", "scitag", "SCITAG")
PARAMETER = "scitag.flow"
DEFAULT_SOCKET = "/run/scitags/agent.sock"
AGENT_ADDRESS = "127.0.0.1:10514"
# With these xrootd hands the header SciTag on, and sends no firefly: it takes no tag from requests, and has no maps.
SILENT_PMARK = (
    "xrootd.pmark use firefly noscitag",
    # Only before 5.6.2 it has to be said, where "use firefly" without it stops the server.
    "xrootd.pmark ffdest origin",
    # Else the client's name is looked up at each open.
    "xrootd.pmark domain any",
)
CRASHES = "this server can crash in third-party copies by HTTP with these lines: take XRootD 5.6.5 or later"


def for_plugin(rules: Iterable[Rule], *, version: Version | None, socket: str = DEFAULT_SOCKET) -> list[str]:
    """Lines for libXrdScitags (docs/xrootd.md); for a release that is not known (None) those that are right in each."""
    lines = [f"xrootd.fslib ++ {LIBRARY}"]
    if version is None or version < HEADER_BY_PMARK:
        lines += _headers()
    if version is None or version >= HEADER_BY_PMARK:
        lines += SILENT_PMARK
    lines.append(f"http.exthandler xrdtpc {LIBRARY}")
    if socket != DEFAULT_SOCKET:
        lines.append(f"scitags.socket {socket}")
    for rule in rules:
        activity = "" if rule.activity is None else f", {rule.activity.name}"
        lines += [
            f"# {rule.experiment.name}{activity}",
            f"scitags.map2exp {rule.condition} {rule.experiment.id}",
        ]
        if rule.activity is not None:
            condition = rule.condition
            lines.append(f"scitags.map2act {rule.experiment.id} {condition} {rule.activity.id}")
    return lines


def for_pmark(
    rules: Iterable[Rule],
    *,
    version: Version,
    defsfile: str,
    destination: str = AGENT_ADDRESS,
) -> list[str]:
    """Lines for xrootd.pmark: fireflies to the agent's source `firefly`.

    Raises InvalidValue for rules that it has no words for: an activity by path or VO, two for one experiment.
    """
    rules = list(rules)
    lines = [
        "xrootd.pmark use firefly scitag",
        f"xrootd.pmark ffdest {destination}",
        # Else flows within the site, and those of private addresses, are not told of.
        "xrootd.pmark domain any",
    ]
    if version < ALL_TAGS:
        lines += _headers()
    if rules:
        lines.append(f"xrootd.pmark defsfile {defsfile}")
    activities: dict[int, int] = {}
    for rule in rules:
        name = one_word(rule.experiment.name)
        lines.append(f"xrootd.pmark map2exp {rule.condition} {name}")
        activity = rule.activity
        if activity is None:
            continue
        before = activities.get(rule.experiment.id)
        if before is not None and before != activity.id:
            raise InvalidValue(
                f"xrootd.pmark knows one activity by default for each experiment: {shown(activity.name)} is the second"
                f" of {rule.experiment.name}; the plug-in tells them apart"
            )
        if before is None:
            lines.append(f"xrootd.pmark map2act {name} default {one_word(activity.name)}")
        activities[rule.experiment.id] = activity.id
    return lines


def remarks_for_plugin(version: Version | None) -> list[str]:
    """What a site should know of the lines for the plug-in, for people."""
    if version is None:
        return ["no xrootd is installed here, and no --server was given: these lines are right in every release"]
    if HEADER_BY_PMARK <= version < COPIES_BESIDE_PMARK:
        return [CRASHES]
    return []


def remarks_for_pmark(version: Version) -> list[str]:
    """What xrootd's own fireflies lack, for people."""
    found = ["the agent hears xrootd's own fireflies by a source of kind firefly (docs/xrootd.md)"]
    if version < ALL_TAGS:
        found.append("this server takes tags above 511 for none, which are those of all experiments from 8 on")
    if HEADER_BY_PMARK <= version < COPIES_BESIDE_PMARK:
        found.append(CRASHES)
    if version >= ORIGIN_BY_DEFAULT:
        found.append("this server sends each firefly to the client's host as well")
    return found


def _headers() -> list[str]:
    return [f"http.header2cgi {spelling} {PARAMETER}" for spelling in SPELLINGS]
