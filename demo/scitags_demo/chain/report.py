"""The joined chains as a table for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from scitags_core.cli.output import count_text, table
from scitags_core.registry import Registry
from scitags_core.tag import Tag
from scitags_demo.chain.join import LINKS, Chain, Joined, Link
from scitags_demo.report import names_of

HEADERS = ("file", "moved by", "rule", "job", "storage", "agent", "on the wire as", "marked", "fireflies", "MB", "")
_ALIGN = "lllrrrlrrr"
RULE_DIGITS = 8
PROBLEMS_SHOWN = 20


def as_text(joined: Joined, registry: Registry) -> str:
    """The table, and whether every chain holds; where not, which link broke."""
    lines = [table(HEADERS, [_cells(one, registry) for one in joined.chains], _ALIGN), ""]
    lines += [f"Note: {note}." for note in notes(joined)]
    broken = [(one, link) for one in joined.chains if (link := one.broken)]
    lines += [f"{one.transfer.name}: {link}: {one.problems[link]}" for one, link in broken[:PROBLEMS_SHOWN]]
    if len(broken) > PROBLEMS_SHOWN:
        lines.append(f"and {count_text(len(broken) - PROBLEMS_SHOWN, 'file')} more")
    lines += verdict(joined)
    return "\n".join(lines)


def verdict(joined: Joined) -> list[str]:
    """The last lines: what was found again, and what broke."""
    tagged = joined.tagged
    found = sum(one.is_found for one in tagged)
    how = "by their labels on the wire" if joined.marking else "by their fireflies"
    files = count_text(len(tagged), "tagged file")
    lines = [f"{found} of {files} found again {how}, with experiment and activity right."]
    counts = Counter(one.broken for one in joined.chains if one.broken)
    for link, what in LINKS.items():
        if counts[link]:
            lines.append(f"Broken: {link}, for {count_text(counts[link], 'file')}. (It holds when {what}.)")
    if not joined.chance.is_likely:
        lines.append("Broken: more untagged flows look tagged, or are announced, than chance makes likely.")
    if joined.holds:
        lines.append("The chain holds from the rule to the wire for every file.")
    return lines


def notes(joined: Joined) -> list[str]:
    """What else a reader ought to know."""
    found = []
    chance = joined.chance
    found.append(
        f"{count_text(chance.flows, 'flow')} that nobody tagged (untagged files, requests to storages) bear labels of "
        f"their hosts; {chance.matched} look like a listed pair, where chance makes {chance.expected:.2f}; fireflies "
        f"name {chance.announced or 'none'} of them"
    )
    packets, marked = sum(one.packets for one in joined.tagged), sum(one.marked for one in joined.tagged)
    if packets:
        found.append(
            f"{marked:,} of {packets:,} packets towards the receivers of tagged files bear the tag; those before the "
            "storage has opened the file (connection, TLS, request) do not"
        )
    if joined.dropped:
        found.append(f"the capture dropped {count_text(joined.dropped, 'packet')}")
    return found


def as_json(joined: Joined, registry: Registry) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "holds": joined.holds,
        "marking": joined.marking,
        "dropped": joined.dropped,
        "tagged": {"files": len(joined.tagged), "found": sum(one.is_found for one in joined.tagged)},
        "untagged": {
            "files": len(joined.untagged),
            "flows": joined.chance.flows,
            "matched": joined.chance.matched,
            "expected": joined.chance.expected,
            "announced": joined.chance.announced,
        },
        "links": LINKS,
        "files": [_file(one, registry) for one in joined.chains],
        "notes": notes(joined),
    }


def state_of(chain: Chain, link: Link) -> bool | None:
    """Whether a link holds; None where the chain has none of it, or had broken before it could be looked at."""
    if link in chain.problems:
        return False
    transfer = chain.transfer
    if link in ("rule", "job", "closed") and not transfer.is_ruled:
        return None
    if chain.expected is None:
        return True if link in ("transfer", "storage", "fireflies", "octets") and chain.keys else None
    reached: dict[Link, bool] = {
        "rule": chain.request is not None,
        "job": chain.file is not None,
        "transfer": chain.finished > 0,
        "storage": chain.storage is not None,
        "agent": chain.agent is not None,
        "packets": chain.marked > 0,
        "fireflies": chain.agent is not None,
        "octets": chain.agent is not None,
        "closed": not chain.problems,
    }
    return True if reached[link] else None


def _cells(chain: Chain, registry: Registry) -> tuple[object, ...]:
    borne = chain.agent if chain.marked else None
    name = ", ".join(part for part in names_of(registry, borne) if part) if borne else "-"
    share = f"{100 * chain.marked / chain.packets:.0f} %" if chain.packets and chain.expected is not None else "-"
    return (
        chain.transfer.name,
        chain.transfer.by,
        chain.rule[:RULE_DIGITS] or "-",
        _number(chain.job),
        _number(chain.storage),
        _number(chain.agent),
        name,
        share,
        f"{chain.fireflies[0]} + {chain.fireflies[1]}",
        f"{chain.octets / 1e6:.2f}",
        f"broken: {chain.broken}" if chain.broken else "holds",
    )


def _number(tag: Tag | None) -> str:
    return str(tag.scitag) if tag is not None else "-"


def _file(chain: Chain, registry: Registry) -> dict[str, Any]:
    transfer = chain.transfer
    experiment, activity = names_of(registry, chain.expected) if chain.expected else (None, None)
    return {
        "name": transfer.name,
        "moved_by": transfer.by,
        "vo": transfer.vo or None,
        "rule": chain.rule or None,
        "rule_state": chain.rule_state or None,
        "rule_activity": transfer.activity or None,
        "request": chain.request.request if chain.request else None,
        "job": chain.file.job_id if chain.file else None,
        "source": transfer.source,
        "destination": transfer.destination,
        "expected": {
            "scitag": chain.expected.scitag if chain.expected else None,
            "experiment": experiment,
            "activity": activity,
        },
        "scitag": {
            "job": chain.job.scitag if chain.job else None,
            "storage": chain.storage.scitag if chain.storage else None,
            "agent": chain.agent.scitag if chain.agent else None,
        },
        "started": chain.started,
        "finished": chain.finished,
        "connections": [str(key) for key in chain.keys],
        "packets": chain.packets,
        "packets_marked": chain.marked,
        "fireflies": {"start": chain.fireflies[0], "end": chain.fireflies[1]},
        "octets": {"file": transfer.octets, "wire": chain.octets},
        "links": {link: state_of(chain, link) for link in LINKS},
        "broken": chain.broken,
        "problems": chain.problems,
    }
