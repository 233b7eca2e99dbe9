"""What is done with Rucio's own interpreter and functions: python rucio_side.py STEP FILE, with RUCIO_CONFIG set.

    build FILE     make the database, the VOs, storages, files and rules that the JSON in FILE asks for; prints what
                   Rucio made of them
    submit         run the conveyor-submitter once
    conclude       run the conveyor-poller and the conveyor-finisher once
    state          prints rules and requests, and how they stand
    serve PORT     serve the REST interface on loopback until ended

FILE: {"fts": URL, "vos": [...], "rses": {NAME: {"scheme", "hostname", "port", "prefix", "impl"}},
"distances": [[NAME, NAME], ...], "files": [{"vo", "scope", "name", "bytes", "adler32", "rse"}],
"rules": [{"vo", "scope", "dataset", "names", "activity", "rse"}]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BULK = 100_000  # requests that a daemon takes in one go: all that there are
ALL = {"read": 1, "write": 1, "delete": 1}
DOMAINS = {"wan": {**ALL, "third_party_copy_read": 1, "third_party_copy_write": 1}, "lan": ALL}


def build(asked: dict[str, Any]) -> dict[str, Any]:
    from rucio.db.sqla.constants import DatabaseOperationType  # noqa: PLC0415
    from rucio.db.sqla.session import db_session  # noqa: PLC0415
    from rucio.db.sqla.util import build_database, create_base_vo, create_root_account  # noqa: PLC0415

    build_database()
    create_base_vo()
    create_root_account()
    with db_session(DatabaseOperationType.WRITE) as session:
        for vo in asked["vos"]:
            _add_vo(vo, asked, session)
        for file in asked["files"]:
            _add_file(file, session)
    # Protocols look storages up by sessions of their own, so what is there must have been committed.
    with db_session(DatabaseOperationType.WRITE) as session:
        urls = {file["name"]: _url(file, session) for file in asked["files"]}
        rules = {rule["dataset"]: _add_rule(rule, session) for rule in asked["rules"]}
    return {"urls": urls, "rules": rules}


def _add_vo(vo: str, asked: dict[str, Any], session: Any) -> None:
    from rucio.common.types import InternalAccount, InternalScope  # noqa: PLC0415
    from rucio.core.account_limit import set_local_account_limit  # noqa: PLC0415
    from rucio.core.distance import add_distance  # noqa: PLC0415
    from rucio.core.rse import add_protocol, add_rse, add_rse_attribute  # noqa: PLC0415
    from rucio.core.scope import add_scope  # noqa: PLC0415
    from rucio.core.vo import add_vo  # noqa: PLC0415

    add_vo(vo, f"VO {vo}", f"{vo}@example.org", session=session)
    root = InternalAccount("root", vo=vo)
    for scope in sorted({file["scope"] for file in asked["files"] if file["vo"] == vo}):
        add_scope(InternalScope(scope, vo=vo), root, session=session)
    ids = {}
    for name, protocol in asked["rses"].items():
        ids[name] = add_rse(name, vo=vo, session=session)
        own = {**protocol, "prefix": protocol["prefix"].format(vo=vo), "domains": DOMAINS, "extended_attributes": None}
        add_protocol(ids[name], own, session=session)
        add_rse_attribute(ids[name], "fts", asked["fts"], session=session)
        set_local_account_limit(root, ids[name], -1, session=session)
    for one, another in asked["distances"]:
        add_distance(ids[one], ids[another], 1, session=session)


def _add_file(file: dict[str, Any], session: Any) -> None:
    from rucio.common.types import InternalAccount, InternalScope  # noqa: PLC0415
    from rucio.core.replica import add_replicas  # noqa: PLC0415
    from rucio.core.rse import get_rse_id  # noqa: PLC0415

    vo = file["vo"]
    replica = {"scope": InternalScope(file["scope"], vo=vo), "name": file["name"]}
    replica |= {"bytes": file["bytes"], "adler32": file["adler32"]}
    add_replicas(
        get_rse_id(file["rse"], vo=vo, session=session), [replica], InternalAccount("root", vo=vo), session=session
    )


def _url(file: dict[str, Any], session: Any) -> str:
    """Where Rucio has it."""
    from rucio.common.types import InternalScope  # noqa: PLC0415
    from rucio.core.replica import list_replicas  # noqa: PLC0415

    did = {"scope": InternalScope(file["scope"], vo=file["vo"]), "name": file["name"]}
    [found] = list_replicas([did], session=session)
    [[url]] = found["rses"].values()
    return str(url)


def _add_rule(rule: dict[str, Any], session: Any) -> str:
    """The id of the rule for a dataset of these files."""
    from rucio.common.types import InternalAccount, InternalScope  # noqa: PLC0415
    from rucio.core.did import add_did, attach_dids  # noqa: PLC0415
    from rucio.core.rule import add_rule  # noqa: PLC0415
    from rucio.db.sqla.constants import DIDType  # noqa: PLC0415

    vo = rule["vo"]
    root, scope = InternalAccount("root", vo=vo), InternalScope(rule["scope"], vo=vo)
    dataset = {"scope": scope, "name": rule["dataset"]}
    add_did(**dataset, did_type=DIDType.DATASET, account=root, session=session)
    files = [{"scope": scope, "name": name} for name in rule["names"]]
    attach_dids(**dataset, dids=files, account=root, session=session)
    [rule_id] = add_rule(
        dids=[dataset],
        account=root,
        copies=1,
        rse_expression=rule["rse"],
        grouping="DATASET",
        weight=None,
        lifetime=None,
        locked=False,
        subscription_id=None,
        activity=rule["activity"],
        session=session,
    )
    return str(rule_id)


def state() -> dict[str, Any]:
    """Rules by id, and the requests that there are: one is gone once its rule is satisfied."""
    from rucio.db.sqla import models  # noqa: PLC0415
    from rucio.db.sqla.constants import DatabaseOperationType  # noqa: PLC0415
    from rucio.db.sqla.session import db_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    with db_session(DatabaseOperationType.READ) as session:
        rules = session.execute(select(models.ReplicationRule)).scalars().all()
        requests = session.execute(select(models.Request)).scalars().all()
        return {
            "rules": {str(one.id): {"state": one.state.name, "activity": one.activity} for one in rules},
            "requests": [
                {
                    "name": one.name,
                    "rule": str(one.rule_id),
                    "request": str(one.id),
                    "activity": one.activity,
                    "state": one.state.name,
                    "job": one.external_id or "",
                }
                for one in requests
            ],
        }


def submit() -> None:
    from rucio.daemons.conveyor.submitter import submitter  # noqa: PLC0415

    # The commands of the same names wait ten seconds for other daemons of their kind first.
    submitter(once=True, partition_wait_time=0, bulk=BULK)


def conclude() -> None:
    from rucio.daemons.conveyor.finisher import finisher  # noqa: PLC0415
    from rucio.daemons.conveyor.poller import poller  # noqa: PLC0415

    poller(once=True, older_than=0, partition_wait_time=0, db_bulk=BULK)
    finisher(once=True, partition_wait_time=0, db_bulk=BULK)


def serve(port: int) -> None:
    from rucio.web.rest.flaskapi.v1.main import application  # noqa: PLC0415
    from werkzeug.serving import run_simple  # noqa: PLC0415

    run_simple("127.0.0.1", port, application, threaded=True)


def main() -> None:
    step, *arguments = sys.argv[1:]
    if step == "build":
        print(json.dumps(build(json.loads(Path(arguments[0]).read_text()))))
    elif step == "state":
        print(json.dumps(state()))
    elif step == "serve":
        serve(int(arguments[0]))
    else:
        {"submit": submit, "conclude": conclude}[step]()


if __name__ == "__main__":
    main()
