"""Serve an instance's REST interface on loopback until ended: python serve.py PORT, with RUCIO_CONFIG set."""

from __future__ import annotations

import sys

from rucio.web.rest.flaskapi.v1.main import application
from werkzeug.serving import run_simple

run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
