"""`python -m scitags_agent` is `scitags-agent`."""

import sys

from scitags_agent.cli import main

sys.exit(main())
