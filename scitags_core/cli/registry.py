"""`scitags registry`: show, update, diff."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from scitags_core import registry_client, settings
from scitags_core.cli import names
from scitags_core.cli.output import count_text, json_line, table
from scitags_core.errors import InvalidValue
from scitags_core.instant import end_of_day
from scitags_core.registry import Experiment, Registry, diff
from scitags_core.roles import Command


def run(arguments: argparse.Namespace) -> int:
    """`scitags registry ACTION`."""
    return {"show": _show, "update": _update, "diff": _diff}[arguments.action](arguments)


def _show(arguments: argparse.Namespace) -> int:
    source = names.choose(arguments)
    experiments = list(source.registry.experiments)
    if arguments.experiment:
        wanted = arguments.experiment
        experiments = [source.registry.experiment(int(wanted) if wanted.isdecimal() else wanted)]
    if arguments.json:
        print(json_line({"registry": source.provenance, "experiments": [_as_json(one) for one in experiments]}))
        return 0
    rows = [
        (one.id, one.name, activity.id, activity.name, scitag)
        for one in experiments
        for activity in one.activities
        if (scitag := one.id << 6 | activity.id)
    ]
    print(table(("id", "experiment", "id", "activity", "scitag"), rows, "rlrlr"))
    print(f"\n{source.description}")
    return 0


def _as_json(experiment: Experiment) -> dict[str, object]:
    return {"id": experiment.id, "name": experiment.name, "activities": list(experiment.activities)}


def _update(arguments: argparse.Namespace) -> int:
    configured = settings.load().registry
    if arguments.registry:
        configured = msgspec.structs.replace(configured, url=arguments.registry)
    before = configured.client().load()
    after = configured.client().update()
    changes = diff(before.registry, after.registry)
    source = names.describe(after)
    if arguments.json:
        print(json_line({"registry": source.provenance, "changes": [_change(one) for one in changes]}))
    else:
        print(source.description)
        print(f"{count_text(len(changes), 'difference')} to the {before.origin} registry that was in use")
    if after.problem:
        print(f"scitags: {after.problem}", file=sys.stderr)
    return 1 if after.problem else 0


def _diff(arguments: argparse.Namespace) -> int:
    changes = diff(_open(arguments.old), _open(arguments.new))
    if arguments.json:
        for one in changes:
            print(json_line(_change(one)))
        return 0
    if changes:
        rows = [
            (one.kind, one.tag.experiment, one.tag.activity if one.subject == "activity" else "", one.old, one.new)
            for one in changes
        ]
        shown = [[("" if cell is None else cell) for cell in row] for row in rows]
        print(table(("what", "experiment", "activity", "old", "new"), shown, "lrrll"))
    print(count_text(len(changes), "difference"))
    return 0


def _change(change: object) -> dict[str, object]:
    content: dict[str, object] = msgspec.to_builtins(change)
    experiment, activity = content.pop("tag")  # type: ignore[misc]
    kind = change.kind  # type: ignore[attr-defined]
    if content["subject"] == "experiment":
        return {"kind": kind, "experiment_id": experiment, **content}
    return {"kind": kind, "experiment_id": experiment, "activity_id": activity, **content}


def _open(location: str) -> Registry:
    """A registry by file, by URL, or by the date at which it was in force."""
    if not Path(location).exists() and not location.startswith(("http://", "https://")):
        try:
            instant = end_of_day(location)
        except InvalidValue:
            raise InvalidValue(f"{location!r} is no file, no URL and no date") from None
        return settings.load().registry.client().as_of(instant)
    loaded = registry_client.open_registry(location)
    if loaded.problem:
        raise InvalidValue(loaded.problem)
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
