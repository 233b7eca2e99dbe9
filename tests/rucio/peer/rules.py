"""Rules as the tests ask for them."""

from __future__ import annotations

from typing import Any

from tests.rucio.peer.sessions import writing


def add(rule: dict[str, Any], fts: str) -> None:
    """Add a file at one RSE and a rule for another; jobs go to the FTS at that URL.

    rule: {"name", "activity"} and, as they differ from the usual, {"vo", "scope", "from", "to"}.
    """
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
