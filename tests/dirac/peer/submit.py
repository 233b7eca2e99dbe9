"""DIRAC's own FTS3Job submits a job; what the real FTS client posts is printed: submit.py VO ACTIVITY (or -)."""

from __future__ import annotations

import json
import sys
from typing import Any
from unittest import mock

import DIRAC.DataManagementSystem.Client.FTS3Job as module  # noqa: N813
from DIRAC.DataManagementSystem.Client.FTS3File import FTS3File


class Storage:
    """What a configured StorageElement answers; there is no configuration here."""

    localStageProtocolList = ()  # noqa: N815  # DIRAC's name
    options: dict[str, Any] = {}

    def __init__(self, name: str, vo: str | None = None) -> None:
        self.name = name

    def generateTransferURLsBetweenSEs(self, lfns: list[str], source: Storage, protocols: Any) -> dict[str, Any]:  # noqa: N802
        urls = {lfn: (f"https://{source.name}{lfn}", f"https://{self.name}{lfn}") for lfn in lfns}
        return {"OK": True, "Value": {"Successful": urls, "Failed": {}, "Protocols": ("https", "https")}}

    def getStatus(self) -> dict[str, Any]:  # noqa: N802
        return {"OK": True, "Value": {"TapeSE": False}}


class Context:
    """A connection to FTS, as the client uses it."""

    access_method = "oauth2"  # which needs nothing delegated

    def post_json(self, path: str, body: str) -> str:
        print(json.dumps({"path": path, "body": json.loads(body)}))
        return json.dumps({"job_id": "1"})


vo, activity = sys.argv[1:3]
job = module.FTS3Job()
job.vo, job.activity = vo, None if activity == "-" else activity
job.type, job.sourceSE, job.targetSE = "Transfer", "a.example", "b.example"
job.username, job.userGroup, job.operationID, job.rmsReqID, job.priority = "u", "g", 1, 1, 3
files = []
for number in range(2):
    file = FTS3File()
    file.fileID, file.lfn, file.checksum, file.size = number, f"/{vo}/{number}", "0a1b2c3d", 10
    files.append(file)
job.filesToSubmit = files
with (
    mock.patch.object(module, "StorageElement", Storage),
    mock.patch.object(
        module.FTS3Job, "_FTS3Job__fetchSpaceToken", staticmethod(lambda *_: {"OK": True, "Value": None})
    ),
):
    result = job.submit(context=Context())
if not result["OK"]:
    raise SystemExit(str(result))
