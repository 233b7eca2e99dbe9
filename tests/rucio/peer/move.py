"""Upload and download files with the Python clients: python move.py MOVES.json, with a client's RUCIO_CONFIG.

MOVES.json: {"before": CODE, "moves": [{"upload": {an item of UploadClient's}} or {"download": {of DownloadClient's}}]}.
A line for each: done, or the exception.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

asked = json.loads(Path(sys.argv[1]).read_text())
exec(asked.get("before", ""), {})

from rucio.client.downloadclient import DownloadClient  # noqa: E402
from rucio.client.uploadclient import UploadClient  # noqa: E402

for move in asked["moves"]:
    try:
        if "upload" in move:
            UploadClient().upload([move["upload"]])
        else:
            DownloadClient().download_dids([move["download"]], trace_custom_fields={})
    except Exception as error:
        print("failed", type(error).__name__, error)
    else:
        print("done")
