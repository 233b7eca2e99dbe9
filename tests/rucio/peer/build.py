"""Build the database of an instance: python build.py, with RUCIO_CONFIG set. Run by Rucio's interpreter.

Arguments: a VO each, "def" for that of a single-VO instance.
"""

from __future__ import annotations

import sys

from rucio.common.types import InternalAccount, InternalScope
from rucio.core.account import add_account
from rucio.core.account_limit import set_local_account_limit
from rucio.core.distance import add_distance
from rucio.core.rse import add_protocol, add_rse, add_rse_attribute
from rucio.core.scope import add_scope
from rucio.core.vo import add_vo
from rucio.db.sqla.constants import AccountType
from rucio.db.sqla.util import build_database, create_base_vo, create_root_account

from tests.rucio.peer.sessions import writing

ALL = {"read": 1, "write": 1, "delete": 1}
DOMAINS = {"wan": {**ALL, "third_party_copy_read": 1, "third_party_copy_write": 1}, "lan": ALL}
RSES = ("SITE_A", "SITE_B", "SITE_C", "TAPE_T")


def build(vo: str) -> None:
    """Accounts, scopes and RSEs of one VO: A to B direct, B to C too, A to C through B alone; a tape."""
    root, jdoe = InternalAccount("root", vo=vo), InternalAccount("jdoe", vo=vo)
    with writing() as session:
        if vo != "def":
            add_vo(vo, f"VO {vo}", "vo@example.org", **session)
        add_account(jdoe, AccountType.USER, "jdoe@example.org", **session)
        for scope in ("user.jdoe", "challenge"):
            add_scope(InternalScope(scope, vo=vo), jdoe, **session)
        ids = {}
        for name in RSES:
            tape = {"rse_type": "TAPE"} if name == "TAPE_T" else {}
            ids[name] = add_rse(name, vo=vo, **tape, **session)
            protocol = {
                "scheme": "root",
                "hostname": f"{name.lower().replace('_', '')}.example.org",
                "port": 1094,
                "prefix": "/data/",
                "impl": "rucio.rse.protocols.xrootd.Default",
                "domains": DOMAINS,
                "extended_attributes": None,
            }
            add_protocol(ids[name], protocol, **session)
            add_rse_attribute(ids[name], "fts", "http://127.0.0.1:1", **session)
            set_local_account_limit(root, ids[name], -1, **session)
        add_rse_attribute(ids["SITE_B"], "available_for_multihop", True, **session)
        if "TAPE_T" in ids:
            add_rse_attribute(ids["TAPE_T"], "staging_required", True, **session)
        for one, other in (("SITE_A", "SITE_B"), ("SITE_B", "SITE_C"), ("SITE_A", "TAPE_T"), ("TAPE_T", "SITE_B")):
            add_distance(ids[one], ids[other], 1, **session)


build_database()
create_base_vo()
create_root_account()
for vo in sys.argv[1:]:
    build(vo)
