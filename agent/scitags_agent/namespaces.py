"""Which network namespaces besides the agent's own are meant: those of containers, as they come and go.

    "storage1", "storage-*"       as `ip netns` knows them (/run/netns)
    "/run/docker/netns/*"         files, with * ? [] as in a shell
    "pid:1234"                    that of a process
    "cgroup:kubepods.slice"       those of the processes in a cgroup and below; also with * ? []
    "all"                         those of all processes, and all that `ip netns` knows

A namespace is known by its number, the inode of its file, which is what /proc/PID/ns/net shows: whichever way it was
found. Those of processes are seen by root, by their own user, and with CAP_SYS_PTRACE.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from scitags_core.errors import ConfigError, shown

NAMED = Path("/run/netns")
_NAMED_ALSO = (NAMED, Path("/var/run/netns"))
RECENT_SECONDS = 1.0
# linux/nsfs.h, linux/sched.h
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000
ALL = "all"
_OF_PROCESS = "pid:"
_OF_CGROUP = "cgroup:"
_PROC = Path("/proc")
_WILD = frozenset("*?[")
_CONTAINER = re.compile(r"([0-9a-f]{12})[0-9a-f]{52}")  # an id of podman, docker, containerd, CRI-O


class Found(msgspec.Struct, frozen=True):
    """A namespace that is there: its number, what people call it, and the file by which it can be entered."""

    number: int
    name: str
    path: str


def check_pattern(pattern: str) -> None:
    """Raises ConfigError for what can mean no namespace."""
    if pattern.startswith(_OF_PROCESS):
        number = pattern.removeprefix(_OF_PROCESS)
        if not (number.isascii() and number.isdigit() and int(number)):
            raise ConfigError(f"namespace {shown(pattern)}: {shown(number)} is no process")
    elif pattern.startswith(_OF_CGROUP):
        path = pattern.removeprefix(_OF_CGROUP).strip("/")
        if not path or ".." in Path(path).parts:
            raise ConfigError(f"namespace {shown(pattern)}: {shown(path)} is no path below the mount of cgroup2")
    elif not pattern or "\0" in pattern or ("/" in pattern and not pattern.startswith("/")):
        raise ConfigError(
            f"namespace {shown(pattern)} is none of a name, an absolute path, pid:NUMBER, cgroup:PATH and {shown(ALL)}"
        )


def checked(patterns: Sequence[str]) -> Sequence[str]:
    """The patterns. Raises ConfigError for one that can mean no namespace."""
    for pattern in patterns:
        check_pattern(pattern)
    return patterns


def number_of(path: str | Path) -> int:
    """The number of the namespace that a file is; 0 for what is none. Raises OSError."""
    found = os.stat(path)  # noqa: PTH116  # of every process, at times
    return found.st_ino if found.st_dev == _device() else 0


def own_number() -> int:
    """That of this thread."""
    return number_of("/proc/thread-self/ns/net")


def of_process(process: int) -> int:
    """The number of a process's namespace. Raises OSError where it may not be seen (CAP_SYS_PTRACE), or has ended."""
    return number_of(f"/proc/{process}/ns/net")


class Finder:
    """Finds them. To be used in one thread at a time; own is the number of the agent's own, which is never meant."""

    def __init__(self, patterns: Sequence[str], own: int | None = None) -> None:
        """Raises ConfigError."""
        self._patterns = checked(patterns)
        self._own = own_number() if own is None else own
        self._last: dict[int, Found] = {}
        self._missing: list[str] = []
        self._looked = float("-inf")
        self.is_denied = False  # whether some could not be seen, the last time

    def find(self) -> dict[int, Found]:
        """All that are there, by their numbers. Each keeps the name and the file by which it was found first."""
        found: dict[int, Found] = {}
        missing = []
        was_denied = False
        for pattern in self._patterns:
            self.is_denied = False
            matching = list(self._matching(pattern))
            if not matching and not self.is_denied:
                missing.append(pattern)
            was_denied = was_denied or self.is_denied
            for one in matching:
                if one.number not in found:
                    known = self._last.get(one.number)
                    found[one.number] = known if known is not None and _leads_to(known) else one
        found.pop(self._own, None)
        self.is_denied = was_denied
        self._last, self._missing, self._looked = found, missing, time.monotonic()
        return found

    def recent(self) -> dict[int, Found]:
        """The same, as of the last second."""
        return self.find() if time.monotonic() - self._looked > RECENT_SECONDS else self._last

    def paths(self) -> list[str]:
        """Of those of the last second, the files."""
        return [one.path for one in self.recent().values()]

    def missing(self) -> list[str]:
        """Those of the patterns that match nothing, not even the agent's own. As of the last second."""
        self.recent()
        return self._missing

    def _matching(self, pattern: str) -> Iterator[Found]:
        if pattern == ALL:
            yield from self._files(NAMED, "*")
            every = (int(one) for one in os.listdir(_PROC) if one.isdigit())  # noqa: PTH208
            yield from self._of_processes((one, "") for one in every)
        elif pattern.startswith(_OF_PROCESS):
            yield from self._of_processes([(int(pattern.removeprefix(_OF_PROCESS)), pattern)])
        elif pattern.startswith(_OF_CGROUP):
            yield from self._of_processes(_processes_in(pattern.removeprefix(_OF_CGROUP).strip("/")))
        elif pattern.startswith("/"):
            yield from self._files(Path("/"), pattern[1:])
        else:
            yield from self._files(NAMED, pattern)

    def _files(self, directory: Path, pattern: str) -> Iterator[Found]:
        paths = sorted(directory.glob(pattern)) if _WILD & set(pattern) else [directory / pattern]
        for path in paths:
            try:
                number = _number_of_network(path)
            except PermissionError:
                self.is_denied = True
                continue
            except OSError:
                continue
            if number:
                yield Found(number, path.name if path.parent in _NAMED_ALSO else str(path), str(path))

    def _of_processes(self, processes: Iterable[tuple[int, str]]) -> Iterator[Found]:
        """Of processes with the names that their namespaces go by; those of their containers where none are given."""
        seen: set[int] = set()
        for process, name in processes:
            try:
                number = of_process(process)
            except PermissionError:
                self.is_denied = True
                continue
            except OSError:  # it has ended
                continue
            if number not in seen:
                seen.add(number)
                yield Found(number, name or _container_of(process), f"/proc/{process}/ns/net")


def _number_of_network(path: Path) -> int:
    """As number_of, but 0 for namespaces of other kinds, which are files of the same device. Raises OSError."""
    number = number_of(path)
    if number:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if fcntl.ioctl(descriptor, _NS_GET_NSTYPE) != _CLONE_NEWNET:
                return 0
        finally:
            os.close(descriptor)
    return number


def _leads_to(found: Found) -> bool:
    try:
        return number_of(found.path) == found.number
    except OSError:
        return False


def _processes_in(pattern: str) -> Iterator[tuple[int, str]]:
    """Of the cgroups that match, and all below them, with the names that these go by."""
    from scitags_agent.rules import cgroup2_mount  # noqa: PLC0415  # few are asked for so

    mount = cgroup2_mount()
    for top in sorted(mount.glob(pattern)) if mount is not None else ():
        for directory, _, files in os.walk(top):
            if "cgroup.procs" not in files:
                continue
            try:
                lines = Path(directory, "cgroup.procs").read_text().split()
            except OSError:  # it has gone, or is a threaded one
                continue
            name = _name_of(Path(directory).relative_to(mount)) if mount is not None else ""
            yield from ((int(line), name) for line in lines if line != "0")


def _container_of(process: int) -> str:
    """By its cgroup; pid:1234 for one that is in no container, or has ended."""
    try:
        cgroups = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    except OSError:
        cgroups = []
    return next((_name_of(Path(one)) for one in cgroups if _CONTAINER.search(one)), f"{_OF_PROCESS}{process}")


def _name_of(cgroup: Path) -> str:
    """docker-1493ed17a563.scope: the part with the container's id, as short as its runtime shows it; else the last."""
    with_id = [part for part in cgroup.parts if _CONTAINER.search(part)]
    return _CONTAINER.sub(r"\1", with_id[-1]) if with_id else cgroup.name


def _device() -> int:
    return os.stat("/proc/thread-self/ns/net").st_dev  # noqa: PTH116
