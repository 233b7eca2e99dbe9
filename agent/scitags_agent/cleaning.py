"""Take away what a killed agent left that will not be started again: programs, routes, pipes, sockets, its ledger."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from scitags_agent.bpf.attach import tcx_programs
from scitags_agent.bpf.layout import BPF_PROG_DETACH, BPF_PROG_GET_FD_BY_ID, BPF_TCX_EGRESS, ProgAttach, ProgId
from scitags_agent.bpf.libbpf import library
from scitags_agent.bpf.namespaces import inside
from scitags_agent.bpf.placement import CLSACT, PROGRAMS
from scitags_agent.config import Instance
from scitags_agent.ledger import Ledger
from scitags_agent.local_path import is_dead
from scitags_agent.namespaces import Finder
from scitags_agent.reserved_routes import ROUTES, remove_left
from scitags_agent.sources.named_pipe import MADE


def clean(directory: Path, namespaces: Sequence[str] = (), sources: Sequence[Instance] = ()) -> list[str]:
    """What was taken away, a line each; in network namespaces of these patterns, too (scitags_agent.namespaces).

    Of the sources, pipes that the agent had made (a writer would wait for ever), and sockets that nobody serves.

    Raises LedgerUnusable while an agent runs, OSError without the right to.
    """
    if not directory.exists():
        return []
    done: list[str] = []
    ledger = Ledger(directory)
    try:
        programs: set[int] = set()
        clsact = False
        for home in directory.glob("of-*"):
            clsact = clsact or (home / CLSACT).exists()
            try:
                programs.update(msgspec.json.decode((home / PROGRAMS).read_bytes(), type=list[int]))
            except (OSError, msgspec.DecodeError):
                continue
            done += [f"route to {one} taken away" for one in _remove_routes(home)]
        done += _clean_interfaces(programs, clsact=clsact)
        found = Finder(namespaces).find()
        for number, one in found.items():
            # One that has gone has taken its interfaces with it.
            with suppress(FileNotFoundError), inside(number, found):
                done += [f"{one.name}: {line}" for line in _clean_interfaces(programs, clsact=clsact)]
        done += [f"{path} removed" for source in sources if (path := _remove_file(source, ledger)) is not None]
    except OSError:
        ledger.close()
        raise
    ledger.remove()
    return [*done, f"{directory} removed"]


def _clean_interfaces(programs: set[int], *, clsact: bool) -> list[str]:
    """Of this thread's network namespace."""
    done: list[str] = []
    for index, name in socket.if_nameindex():
        if programs:
            done += [f"{name}: program {one} taken away" for one in _detach(index, programs)]
        if clsact:
            from scitags_agent.bpf.clsact import clear_stale  # noqa: PLC0415

            clear_stale(index)
    return done


def _remove_file(source: Instance, ledger: Ledger) -> Path | None:
    """Where the source's writers came to, if that was ours and is of no use any more."""
    path = Path(getattr(source.settings, "socket" if source.kind.kind == "http" else "path", ""))
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if source.kind.kind == "named_pipe":
        is_left = stat.S_ISFIFO(mode) and (ledger.home(f"source {source.name}") / MADE).exists()
    else:
        is_left = source.kind.kind in ("unix", "http") and stat.S_ISSOCK(mode) and is_dead(path)
    if not is_left:
        return None
    path.resolve().unlink()
    return path


def _remove_routes(home: Path) -> list[str]:
    """Those that kept room free for headers; none where the file is not there that says where they are."""
    try:
        namespaces = msgspec.json.decode((home / ROUTES).read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError):
        return []
    return remove_left(namespaces)


def _detach(index: int, programs: set[int]) -> list[int]:
    ours = [one for one in tcx_programs(index)[0] if one in programs]
    for one in ours:
        descriptor = library().syscall(BPF_PROG_GET_FD_BY_ID, ProgId(one, 0, 0))
        try:
            request = ProgAttach(index, descriptor, BPF_TCX_EGRESS, 0, 0, 0, 0)
            library().syscall(BPF_PROG_DETACH, request)
        finally:
            os.close(descriptor)
    return ours
