"""`scitags registry`: show, update, diff."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from scitags_core import label, settings
from scitags_core import tag as scitag
from scitags_core.cli import names
from scitags_core.cli.output import count_text, json_line, table
from scitags_core.errors import InvalidValue, RegistryError
from scitags_core.instant import end_of_day
from scitags_core.registry import Activity, Change, Experiment, Registry, diff
from scitags_core.roles import Command


def run(arguments: argparse.Namespace) -> int:
    """`scitags registry ACTION`."""
    return {"show": _show, "update": _update, "diff": _diff}[arguments.action](arguments)


# --- show ---------------------------------------------------------------------------------------


def _show(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    experiments = list(source.registry.experiments)
    if arguments.experiment is not None:
        wanted = arguments.experiment
        is_id = wanted.isascii() and wanted.isdigit()
        experiments = [source.registry.experiment(int(wanted[:20]) if is_id else wanted)]
    for problem in source.registry.alias_problems():
        print(f"scitags: {problem}", file=sys.stderr)
    if arguments.json:
        print(json_line({"registry": source.provenance, "experiments": [_as_json(one) for one in experiments]}))
        return 0
    rows = [_row(one, activity) for one in experiments for activity in one.activities]
    print(table(("id", "experiment", "id", "activity", "scitag", "label"), rows, "rlrlrr"))
    print(f"\n{source.description}")
    return 0


def _row(experiment: Experiment, activity: Activity) -> tuple[object, ...]:
    return experiment.id, experiment.name, activity.id, activity.name, *_wire(experiment.id, activity.id)


def _as_json(experiment: Experiment) -> dict[str, Any]:
    activities = []
    for activity in experiment.activities:
        number, flow_label = _wire(experiment.id, activity.id)
        activities.append({"id": activity.id, "name": activity.name, "scitag": number, "label": flow_label})
    return {"id": experiment.id, "name": experiment.name, "activities": activities}


def _wire(experiment: int, activity: int) -> tuple[int | None, int | None]:
    """The scitag and the label without entropy; None where there is none."""
    number = experiment << scitag.ACTIVITY_BITS | activity
    flow_label = label.encode(experiment, activity) if experiment <= label.EXPERIMENT_MAX else None
    return number if number >= scitag.SCITAG_MIN else None, flow_label


# --- update -------------------------------------------------------------------------------------


def _update(arguments: argparse.Namespace) -> int:
    configured = settings.load().registry
    url = arguments.registry or configured.url
    if not names.is_url(url):
        raise InvalidValue(f"registry {url!r} is no URL: only those are fetched")
    client = names.client_for(url, configured)
    before = client.load()
    after = client.update()
    changes = diff(before.registry, after.registry)
    source = names.describe(after)
    if arguments.json:
        print(json_line({"registry": source.provenance, "changes": [_change(one) for one in changes]}))
    else:
        if changes:
            print(f"{_change_table(changes)}\n")
        print(source.description)
        print(f"{count_text(len(changes), 'difference')} to the {before.origin} registry that was in use")
    if after.problem:
        print(f"scitags: {after.problem}", file=sys.stderr)
    return 1 if after.problem else 0


# --- diff ---------------------------------------------------------------------------------------


def _diff(arguments: argparse.Namespace) -> int:
    changes = diff(_open(arguments.old), _open(arguments.new))
    if arguments.json:
        for one in changes:
            print(json_line(_change(one)))
        return 0
    if changes:
        print(_change_table(changes))
    print(count_text(len(changes), "difference"))
    return 0


def _change_table(changes: list[Change]) -> str:
    rows = [
        (
            one.kind,
            one.tag.experiment,
            "" if one.subject == "experiment" else one.tag.activity,
            one.old or "",
            one.new or "",
        )
        for one in changes
    ]
    return table(("what", "experiment", "activity", "old", "new"), rows, "lrrll")


def _change(change: Change) -> dict[str, Any]:
    activity = None if change.subject == "experiment" else change.tag.activity
    return {
        "kind": change.kind,
        "subject": change.subject,
        "experiment_id": change.tag.experiment,
        "activity_id": activity,
        "old": change.old,
        "new": change.new,
    }


def _open(location: str) -> Registry:
    """A registry by file, by URL, or by the date at which it was in force."""
    configured = settings.load().registry
    if not names.is_url(location) and not Path(location).exists():
        try:
            instant = end_of_day(location)
        except InvalidValue:
            raise InvalidValue(f"{location!r} is no file, no URL and no date") from None
        return names.client_for(configured.url, configured).as_of(instant)
    loaded = names.open_location(location, configured)
    # The last good copy, or ours, in place of a URL would be compared under a wrong name.
    if loaded.origin not in ("network", "file"):
        raise RegistryError(loaded.problem)
    return loaded.registry


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `scitags registry`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="experiments and activities, and where they are known from")
    show.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="only this one, by id, name or alias")
    names.add_options(show)
    update = actions.add_parser("update", help="fetch it; the last good copy stays when the answer is bad")
    update.add_argument("--registry", metavar="URL", help="instead of the configured one")
    differ = actions.add_parser("diff", help="what changed from one to another")
    differ.add_argument("old", metavar="OLD", help="file, URL, or date")
    differ.add_argument("new", metavar="NEW", help="file, URL, or date")
    for action in (show, update, differ):
        action.add_argument("--json", action="store_true", help="for programs")


COMMAND = Command("registry", "the registry of experiments and activities", configure, run)
