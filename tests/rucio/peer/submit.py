"""Make rules and run the submitter once, in one process: python submit.py RULES.json, with RUCIO_CONFIG set.

RULES.json: {"fts": URL, "rules": [{"vo", "scope", "name", "activity", "from", "to"}, ...],
"options": {for the submitter} or null for no submission, "before": CODE, "after": CODE}. Run by Rucio's interpreter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.rucio.peer.rules import add


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


main()
