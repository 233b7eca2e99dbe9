"""What `scitags agent flows` and `scitags agent top` show of a running agent."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from scitags_agent.client import AgentClient
from scitags_core.cli.output import table
from scitags_core.registry import Registry
from scitags_core.tag import Tag

ANSWER_SECONDS = 5.0
_CLEAR = "\033[H\033[2J"


def flows_table(flows: Iterable[Mapping[str, Any]], registry: Registry) -> str:
    """A row for each transfer."""
    rows = []
    flows = list(flows)
    has_namespaces = any("namespace" in one for one in flows)
    for one in flows:
        names = registry.names(Tag(one["experiment"], one["activity"]))
        rows.append(
            (
                names.experiment or one["experiment"],
                names.activity or one["activity"],
                one["protocol"],
                _endpoint(one["src"], one["src_port"]),
                _endpoint(one["dst"], one["dst_port"]),
                one["start_time"][:19],
                _marks(one.get("marks", {})) or None,
                one["application"] or None,
                *([one.get("namespace")] if has_namespaces else []),
            )
        )
    heading = ("experiment", "activity", "", "source", "destination", "since (UTC)", "marked by", "application")
    return table(heading + (("namespace",) if has_namespaces else ()), rows)


def top(client: AgentClient, registry: Registry, seconds: float, rounds: int) -> None:
    """Show what goes on, anew after so many seconds; rounds of 0 go on until interrupted."""
    before: Mapping[str, Any] | None = None
    number = 0
    is_terminal = sys.stdout.isatty()
    while True:
        status = client.status(timeout=ANSWER_SECONDS)
        count = Counter((one["experiment"], one["activity"]) for one in client.flows(timeout=ANSWER_SECONDS))
        text = _page(status, before, count, registry, seconds)
        print(f"{_CLEAR}{text}" if is_terminal else f"{text}\n", flush=True)
        number += 1
        if rounds and number >= rounds:
            return
        before = status
        time.sleep(seconds)


def _page(
    status: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    count: Counter[tuple[int, int]],
    registry: Registry,
    seconds: float,
) -> str:
    flows, events = status["table"], _accepted(status)
    rate = "" if before is None else f", {(events - _accepted(before)) / seconds:,.0f} events/s"
    work = f"{flows['transfers']:,} transfers on {flows['flows']:,} connections{rate}"
    lines = [f"scitags-agent {status['version']}, up {status['uptime_seconds']:,.0f} s: {work}"]
    for name, counters in status["backends"].items():
        shown = {key: value for key, value in counters.items() if value}
        lines.append(f"  {name}: " + ", ".join(f"{key} {value:,}" for key, value in shown.items()))
    lines += [f"  {name} is not there: {why}" for name, why in status.get("absent", {}).items()]
    rows = []
    for (experiment, activity), transfers in count.most_common():
        names = registry.names(Tag(experiment, activity))
        rows.append((names.experiment or experiment, names.activity or activity, f"{transfers:,}"))
    return "\n".join(lines) + "\n\n" + table(("experiment", "activity", "transfers"), rows, "llr")


def _accepted(status: Mapping[str, Any]) -> int:
    return sum(int(source.get("accepted", 0)) for source in status["sources"].values())


def _marks(marks: Mapping[str, Mapping[str, str]]) -> str:
    """What marks a transfer; why not in a better way is in the JSON, and here of what is not marked at all."""
    return ", ".join(f"{one['by']}: {one['why']}" if one["by"] == "unmarked" else one["by"] for one in marks.values())


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
