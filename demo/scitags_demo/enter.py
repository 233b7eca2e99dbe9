"""`python -m scitags_demo.enter PARENT HOLDER COMMAND...`: run a command in a namespace of the demonstration.

The command dies with PARENT, the process that started it, and so never outlives the demonstration.
"""

from __future__ import annotations

import os
import sys

from scitags_demo.kernel import die_with_parent, enter_network_namespace


def main() -> None:
    parent, holder, *command = sys.argv[1:]
    die_with_parent(int(parent))
    enter_network_namespace(int(holder))
    os.execvp(command[0], command)  # noqa: S606  (the command is the demonstration's own)


if __name__ == "__main__":
    main()
