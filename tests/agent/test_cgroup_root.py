"""Where cgroup version 2 is, from what the kernel says of mounts (proc_pid_mountinfo(5))."""

from __future__ import annotations

from pathlib import Path

import pytest

from scitags_agent.bpf.connections import ConnectionsUnavailable, cgroup_root

TMPFS = "24 22 0:20 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n"
VERSION_1 = "26 24 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"),
        (TMPFS + VERSION_1 + "35 24 0:31 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n", "/sys/fs/cgroup/unified"),
        ("30 23 0:26 /.. /a\\040b\\134c ro master:1 propagate_from:2 - cgroup2 none rw\n", "/a b\\c"),
    ],
)
def test_the_mount_is_found(mounts: str, expected: str) -> None:
    assert cgroup_root(mounts) == Path(expected)


def test_where_there_is_none_it_is_said_how_to_have_one() -> None:
    with pytest.raises(ConnectionsUnavailable, match="mount -t cgroup2"):
        cgroup_root(TMPFS + VERSION_1)
