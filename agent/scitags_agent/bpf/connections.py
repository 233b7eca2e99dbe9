"""TCP connections of this host as they open and close, told by the kernel: a sock_ops program on a cgroup.

The program hangs on a link of its own, beside whatever others have put there, and goes with this process. It runs
when a connection changes its state, never for a packet. What it reports waits in a ring buffer that is bounded:
what finds no room there is counted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import sys
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path

from scitags_agent.bpf.connections_layout import (
    ATTACH_TYPE_CGROUP_SOCK_OPS,
    HELPER_GET_NETNS_COOKIE,
    HELPER_TCP_SOCK,
    PROGRAM_TYPE_SOCK_OPS,
    RING_CALLBACK,
    SETTINGS_OCTETS,
    Connection,
    Event,
    PortFilter,
    Report,
    pack_settings,
    unpack_connection,
)
from scitags_agent.bpf.layout import BPF_LINK_CREATE, LinkCreate
from scitags_agent.bpf.libbpf import SONAME, MarkerUnavailable, library
from scitags_core.errors import ConfigError

OBJECT_NAME = "connections.bpf.o"
PROGRAM = "scitags_connections"
DEFAULT_RING_OCTETS = 1 << 20
EVERYTHING = (PortFilter(),)
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, kernel 5.14
_MOUNT_INFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_STOP = -errno.EAGAIN


class ConnectionsUnavailable(ConfigError):
    """Connections cannot be watched here; the message says what is missing and how to get it."""


class ConnectionsProgram:
    """The program, loaded and attached; its reports are taken with take()."""

    def __init__(
        self,
        cgroup: Path,
        *,
        filters: Sequence[PortFilter] = EVERYTHING,
        events: Collection[Event] = tuple(Event),
        all_namespaces: bool = False,
        ring_octets: int = DEFAULT_RING_OCTETS,
    ) -> None:
        """Watch the processes of a cgroup (version 2) and of those below it.

        filters      the ports of the connections to report; no more than any of them is reported
        events       what to report. A CLOSED comes for connections whose beginning the program has seen, or
                     another of its kind: the kernel calls all who watch a socket once one has asked
        all_namespaces   not this process's network namespace alone. A kernel that cannot tell reports all
        ring_octets  a power of two, at least a page; a report takes 136

        Raises ConnectionsUnavailable.
        """
        self._pending: list[bytes] = []
        self._limit = 0
        self._link = -1
        self._ring = 0
        self._callback = RING_CALLBACK(self._keep)  # must live as long as libbpf may call it
        try:
            self._lib = library()
            self._native = _declared()
        except MarkerUnavailable as error:
            raise ConnectionsUnavailable(str(error)) from None
        has_cookie = self._kernel_has(HELPER_GET_NETNS_COOKIE)
        netns = 0 if all_namespaces or not has_cookie else own_namespace()
        self.one_namespace = netns != 0
        settings = pack_settings(
            filters, events, netns=netns, has_netns_cookie=has_cookie, has_tcp_sock=self._kernel_has(HELPER_TCP_SOCK)
        )
        self._lib.take_messages()
        self._object = self._open()
        try:
            self._load(settings, ring_octets)
            self._attach(cgroup)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the program away. What was not taken before is lost."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        if self._ring:
            self._native.ring_buffer__free(self._ring)
            self._ring = 0
        if self._object:
            self._lib.close(self._object)
            self._object = 0

    def fileno(self) -> int:
        """Readable while there are reports to take."""
        return int(self._native.ring_buffer__epoll_fd(self._ring))

    def take(self, limit: int) -> list[Connection]:
        """At most so many reports, the oldest first; never waits."""
        self._limit = limit
        self._native.ring_buffer__consume(self._ring)
        taken, self._pending = self._pending, []
        return [unpack_connection(octets) for octets in taken]

    def counters(self) -> dict[str, int]:
        """Reports since the program was loaded: written, and lost because the ring buffer was full."""
        values = (ctypes.c_uint64 * self._lib.call("libbpf_num_possible_cpus"))()
        totals = {}
        for report in Report:
            index = ctypes.c_uint32(report)
            self._lib.call("bpf_map_lookup_elem", self._reports, bytes(index), ctypes.byref(values))
            totals[report.name.lower()] = sum(values)
        return totals

    def _keep(self, _context: int | None, data: int, octets: int) -> int:
        """Called by libbpf for a report, which is taken in any case; a negative answer ends the round."""
        self._pending.append(ctypes.string_at(data, octets))
        return _STOP if len(self._pending) >= self._limit else 0

    def _kernel_has(self, helper: int) -> bool:
        return bool(self._native.libbpf_probe_bpf_helper(PROGRAM_TYPE_SOCK_OPS, helper, None) == 1)

    def _open(self) -> int:
        path = Path(str(resources.files("scitags_agent.bpf").joinpath(OBJECT_NAME)))
        if not path.is_file():
            raise ConnectionsUnavailable(
                f"{OBJECT_NAME} is not in this installation: it was built without clang. "
                "Install a wheel that was built with it, or clang and libbpf-dev, and install again"
            )
        opened = self._lib.pointer("bpf_object__open_file", os.fsencode(path), None)
        if opened is None:
            raise ConnectionsUnavailable(f"{OBJECT_NAME} cannot be opened: {self._lib.take_messages()}")
        return opened

    def _load(self, settings: bytes, ring_octets: int) -> None:
        lib = self._lib
        try:
            constants = ctypes.c_void_p(self._constants())
            result = self._native.bpf_map__set_initial_value(constants, settings, len(settings))
            if result < 0:
                raise OSError(-result, os.strerror(-result))
            lib.call("bpf_map__set_max_entries", self._map("connections"), ring_octets)
            lib.call("bpf_object__load", self._object)
            self._reports = lib.call("bpf_map__fd", self._map("reports"))
            ring = self._native.ring_buffer__new(
                lib.call("bpf_map__fd", self._map("connections")), self._callback, None, None
            )
            if not ring:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            self._ring = ring
        except OSError as error:
            raise ConnectionsUnavailable(_why_not(error, lib.take_messages())) from None

    def _constants(self) -> int:
        """The map of the program's settings. ConnectionsUnavailable when it is of another version than we are."""
        current = self._lib.pointer("bpf_object__next_map", self._object, None)
        while current is not None:
            if self._lib.text("bpf_map__name", current).endswith(".rodata"):
                if self._lib.call("bpf_map__value_size", current) == SETTINGS_OCTETS:
                    return current
                break
            current = self._lib.pointer("bpf_object__next_map", self._object, current)
        raise ConnectionsUnavailable(f"{OBJECT_NAME} is of another version than the agent: install again")

    def _map(self, name: str) -> int:
        found = self._lib.pointer("bpf_object__find_map_by_name", self._object, name.encode())
        assert found is not None, name
        return found

    def _attach(self, cgroup: Path) -> None:
        program = self._lib.pointer("bpf_object__find_program_by_name", self._object, PROGRAM.encode())
        assert program is not None
        self._link = attach_sock_ops(self._lib.call("bpf_program__fd", program), cgroup)


def attach_sock_ops(program: int, cgroup: Path) -> int:
    """Put a sock_ops program on a cgroup, beside whatever is there; the descriptor of its link.

    Raises ConnectionsUnavailable.
    """
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConnectionsUnavailable(f"cgroup {cgroup}: {error.strerror}") from None
    try:
        # The kernel reads the cgroup where it reads an interface for a link of another kind.
        request = LinkCreate(prog_fd=program, target_ifindex=directory, attach_type=ATTACH_TYPE_CGROUP_SOCK_OPS)
        return library().syscall(BPF_LINK_CREATE, request)
    except OSError as error:
        raise ConnectionsUnavailable(f"cgroup {cgroup}: {_why_not_attached(error)}") from None
    finally:
        os.close(directory)


def _declared() -> ctypes.CDLL:
    """libbpf with the functions that only we use."""
    native = ctypes.CDLL(SONAME, use_errno=True)
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("libbpf_probe_bpf_helper", integer, (integer, integer, pointer)),
        ("bpf_map__set_initial_value", integer, (pointer, ctypes.c_char_p, ctypes.c_size_t)),
        ("ring_buffer__new", pointer, (integer, RING_CALLBACK, pointer, pointer)),
        ("ring_buffer__free", None, (pointer,)),
        ("ring_buffer__consume", integer, (pointer,)),
        ("ring_buffer__epoll_fd", integer, (pointer,)),
    ):
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
    return native


def own_namespace() -> int:
    """The cookie of this thread's network namespace; 0 when the kernel does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        return namespace_of(one)


def namespace_of(one: socket.socket) -> int:
    """The cookie of a socket's network namespace; 0 when the kernel does not tell."""
    try:
        return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0


def cgroup_root(mounts: str | None = None) -> Path:
    """Where cgroup version 2 is mounted, the whole of what this process may see of it.

    mounts is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)), read when None. Raises ConnectionsUnavailable.
    """
    for line in (_MOUNT_INFO.read_text() if mounts is None else mounts).splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            return Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), before.split(" ")[4]))
    raise ConnectionsUnavailable("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def probe() -> str | None:
    """Why connections cannot be watched here, in one line; None when they can."""
    try:
        ConnectionsProgram(cgroup_root(), events=(), ring_octets=os.sysconf("SC_PAGE_SIZE")).close()
    except (ConnectionsUnavailable, OSError) as error:
        return str(error)
    return None


def _why_not(error: OSError, messages: str) -> str:
    if error.errno == errno.EPERM:  # the verifier says EACCES, which is a PermissionError too
        return "the right to load eBPF programs is missing: run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    return f"the kernel does not take the program: {error.strerror}" + (f" ({messages})" if messages else "")


def _why_not_attached(error: OSError) -> str:
    if error.errno == errno.EBADF:
        return "it is no cgroup of version 2"
    if isinstance(error, PermissionError):
        return (
            "the program may not be attached: the right is missing (CAP_NET_ADMIN), or somebody has attached one "
            "that suffers no other (bpftool cgroup tree)"
        )
    if error.errno == errno.EINVAL:
        return "the kernel has no links for cgroups (5.7 and later have)"
    return str(error.strerror)
