"""Give an instance the RSEs of a storage: python rses.py RSES.json, with RUCIO_CONFIG set.

RSES.json: {NAME: {"scheme", "hostname", "port", "prefix", "impl", "deterministic"}, ...}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rucio.common.types import InternalAccount
from rucio.core.account_limit import set_local_account_limit
from rucio.core.rse import add_protocol, add_rse

from tests.rucio.peer.sessions import writing

ALL = {"read": 1, "write": 1, "delete": 1}

with writing() as session:
    for name, one in json.loads(Path(sys.argv[1]).read_text()).items():
        rse = add_rse(name, deterministic=one.pop("deterministic"), **session)
        add_protocol(
            rse,
            {**one, "domains": {"wan": ALL, "lan": ALL}, "extended_attributes": None},
            **session,
        )
        set_local_account_limit(InternalAccount("root"), rse, -1, **session)
