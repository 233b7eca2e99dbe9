"""`python -m scitags_demo.sweep DIRECTORY`: remove the directory once standard input ends.

Its writing end is held by the demonstration alone, so it ends with it, however that ends.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

TRIES = 20
PAUSE_SECONDS = 0.1


def main() -> None:
    directory = Path(sys.argv[1])
    sys.stdin.buffer.read()
    for _ in range(TRIES):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        # The others are being killed at this very moment, and may yet make a file.
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
