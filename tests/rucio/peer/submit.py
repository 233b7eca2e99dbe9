"""Make rules and run the submitter once, in one process: python submit.py RULES.json, with RUCIO_CONFIG set.

RULES.json: {"fts": URL, "rules": [{"vo", "scope", "name", "activity", "from", "to"}, ...],
"options": {for the submitter} or null for no submission, "before": CODE, "after": CODE}. Run by Rucio's interpreter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.rucio.peer.sessions import writing


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    exec(asked.get("before", ""), {})
    for rule in asked["rules"]:
        add(rule, asked["fts"])
    options = asked.get("options", {})
    if options is not None:
        from rucio.daemons.conveyor.submitter import submitter

        submitter(once=True, partition_wait_time=0, **options)
    exec(asked.get("after", ""), {})


def add(rule: dict[str, Any], fts: str) -> None:
    from rucio.common.types import InternalAccount, InternalScope
    from rucio.core.replica import add_replicas
    from rucio.core.rse import add_rse_attribute, get_rse_id
    from rucio.core.rule import add_rule

    vo = rule.get("vo", "def")
    root, scope = InternalAccount("root", vo=vo), InternalScope(rule.get("scope", "user.jdoe"), vo=vo)
    source, destination = rule.get("from", "SITE_A"), rule.get("to", "SITE_B")
    with writing() as session:
        for name in ("SITE_A", "SITE_B", "SITE_C", "TAPE_T"):
            add_rse_attribute(get_rse_id(name, vo=vo, **session), "fts", fts, **session)
    with writing() as session:
        file = {"scope": scope, "name": rule["name"], "bytes": 1000, "adler32": "12345678"}
        add_replicas(get_rse_id(source, vo=vo, **session), [file], root, **session)
        add_rule(
            [{"scope": scope, "name": rule["name"]}],
            root,
            1,
            destination,
            "NONE",
            None,
            None,
            False,
            None,
            activity=rule["activity"],
            **session,
        )


main()
