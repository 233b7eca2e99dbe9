"""DIRAC's own gfal2 storage moves a file: move.py VO FROM TO. FROM or TO is a local file, or both are URLs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import scitags_dirac

scitags_dirac.enable()

from DIRAC.Resources.Storage.GFAL2_StorageBase import GFAL2_StorageBase  # noqa: E402

vo, source, destination = sys.argv[1:]
remote = destination if "://" in destination else source
protocol = remote.partition(":")[0]
parameters = {"Protocol": protocol, "Path": "/", "Host": "h", "Port": "1", "SpaceToken": "", "WSUrl": ""}
storage = GFAL2_StorageBase("a-storage", parameters)
storage.se = SimpleNamespace(vo=vo)
storage.checksumType = None
storage.ctx.set_opt_boolean("HTTP PLUGIN", "INSECURE", True)
wanted = storage.ctx.transfer_parameters()
wanted.overwrite = True
storage.ctx.filecopy(wanted, source, destination)
