"""Which transfers that bring no tag get which: rules of a site, written for the plug-in and for xrootd.pmark."""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from scitags_core.cli.names import name_or_id
from scitags_core.errors import InvalidValue, shown
from scitags_core.registry import Activity, Experiment, Registry

Kind = Literal["path", "vo", "default"]


class Rule(msgspec.Struct, frozen=True):
    """Transfers of this path or VO, or all others, are this experiment's and, unless None, this activity's."""

    kind: Kind
    value: str
    experiment: Experiment
    activity: Activity | None

    @property
    def condition(self) -> str:
        return self.kind if self.kind == "default" else f"{self.kind} {self.value}"


def parse_rule(kind: Kind, text: str, registry: Registry) -> Rule:
    """`/atlas=atlas`, `/atlas=atlas:Production Input`; for the default without the first half.

    Raises InvalidValue, UnknownName.
    """
    value, mark, named = ("", "=", text) if kind == "default" else text.partition("=")
    experiment_name, has_activity, activity_name = named.partition(":")
    if not mark or not experiment_name or (kind != "default" and not value):
        raise InvalidValue(f"--{kind} {shown(text)} is not of the form {_form(kind)}")
    if kind == "path" and not value.startswith("/"):
        raise InvalidValue(f"--path {shown(text)}: {shown(value)} is not absolute")
    if len(value.split()) > 1:
        raise InvalidValue(f"--{kind} {shown(text)}: xrootd's configuration cannot hold the blank in {shown(value)}")
    experiment = registry.experiment(name_or_id(experiment_name))
    activity = registry.activity(experiment.id, name_or_id(activity_name)) if has_activity else None
    return Rule(kind, value, experiment, activity)


def one_word(name: str) -> str:
    """A name of the registry as xrootd.pmark can hold it: its words joined."""
    return "_".join(name.split())


def defsfile(registry: Registry) -> str:
    """The registry in the format of api.json with names of one word, for `xrootd.pmark defsfile`."""
    experiments = [
        {
            "expName": one_word(experiment.name),
            "expId": experiment.id,
            "activities": [{"activityName": one_word(a.name), "activityId": a.id} for a in experiment.activities],
        }
        for experiment in registry.experiments
    ]
    modified = f"{registry.modified:%Y-%m-%dT%H:%M:%SZ}" if registry.modified else "unknown"
    return json.dumps({"version": 1, "modified": modified, "experiments": experiments}, indent=1)


def _form(kind: Kind) -> str:
    return "EXPERIMENT[:ACTIVITY]" if kind == "default" else f"{kind.upper()}=EXPERIMENT[:ACTIVITY]"
