"""`scitags rucio` with Rucio's interpreter: python command.py ARGUMENT ..."""

from __future__ import annotations

import argparse
import sys

from scitags_core.errors import ScitagsError
from scitags_rucio.command import COMMAND

parser = argparse.ArgumentParser()
COMMAND.configure(parser)
try:
    sys.exit(COMMAND.run(parser.parse_args()))
except ScitagsError as error:
    print(f"scitags: {error}", file=sys.stderr)
    sys.exit(1)
