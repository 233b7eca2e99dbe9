"""Flow labels that the kernel writes itself, for TCP: no program runs for any packet.

A sock_ops program on a cgroup gives a connection that opens the hash of which the kernel makes its label. One that is
open already is found by a walk over the sockets of a network namespace; its next packet bears the label, whatever that
packet is. The label stays on the socket when this process is killed, and goes with the socket.

A connection can be expected besides, where one of its ports is known and the other not: the first that comes to stand
there bears the label from its first packet of data on. What is expected goes with this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from scitags_agent.bpf.connections import ConnectionsUnavailable, attach_sock_ops, cgroup_root, own_namespace
from scitags_agent.bpf.flow_table import value_octets
from scitags_agent.bpf.layout import FLOW_KEY_OCTETS, pack_label, pack_place
from scitags_agent.bpf.libbpf import BPF_ANY, BPF_NOEXIST, BpfObject, MarkerUnavailable, library, shipped_object
from scitags_core.flow import FlowKey

OBJECT_NAME = "kernel_label.bpf.o"
MAX_EXPECTED = 32  # at one place
# Of more than are likely to be under way at once: those that wait, and those whose connections are decided about.
MAX_PLACES = 1 << 12
MAX_MET = 1 << 14
_SETTINGS = struct.Struct("=QIBB2x")  # struct kernel_label_settings
_REPORT = struct.Struct(f"={FLOW_KEY_OCTETS}sIIiI")  # struct report
_PLACE = struct.Struct("=Q16s16s2s2s4x")  # struct expected_place
_EXPECTATION = struct.Struct("=QQQ4s4x")  # struct expectation
_HEAD, _END = struct.Struct("=QII"), struct.Struct("=Q")  # struct expectations
_ID = struct.Struct("=Q")
_NOBODY = _ID.pack(0)
_READ_OCTETS = 1 << 16
_SYSCTL = Path("/proc/sys/net/ipv6")
# net.ipv6.auto_flowlabels: off, or off unless the application asks for it (Documentation/networking/ip-sysctl).
_SYSCTL_OFF = ("0", "2")


class SocketState(enum.IntEnum):
    """enum socket_state."""

    WAITING = 0
    LABELLED = 1
    GIVEN_BACK = 2
    OWN_LABEL = 3
    REFUSED = 4
    NO_LABEL = 5


class Canonical(enum.IntEnum):
    """enum canonical: from which of its directions a connection's entropy is computed."""

    FROM_NEAR = 0
    FROM_FAR = 1
    BY_PORT = 2


class Expectation(msgspec.Struct, frozen=True, gc=False):
    """struct expectation: one connection that is expected.

    id       no other one's since the programs were loaded, and not 0
    sent     seconds, by time.monotonic: what has been asked for before that is not meant
    until    seconds: what comes later is not meant either
    label    without entropy; 0 for a connection that is to have none
    """

    id: int
    sent: float
    until: float
    label: int

    def packed(self) -> bytes:
        return _EXPECTATION.pack(self.id, int(self.sent * 1e9), int(self.until * 1e9), pack_label(self.label))


class SocketReport(msgspec.Struct, frozen=True, gc=False):
    """What became of one socket.

    key      the octets of its flow key (layout.pack_key), from this host's end
    label    as the table has it (layout.label_word); 0 for one that gives its label back
    error    the negative errno of REFUSED
    callbacks   that are asked for of the socket (BPF_SOCK_OPS_*_CB_FLAG), by anybody
    """

    key: bytes
    label: int
    state: SocketState
    error: int
    callbacks: int


class KernelLabels:
    """The programs, loaded; new connections get their labels from then on, others by walk()."""

    def __init__(self, max_flows: int, *, cgroup: Path | None = None, has_places: bool = False, seed: int = 0) -> None:
        """For the sockets of a cgroup (version 2) and those below it, its root when None.

        max_flows       directions that can have a label
        has_places      for the sockets of other network namespaces than this thread's, too: those of set_places()
        seed            of the entropy of connections that are expected: the CRC-32 of their key (layout.pack_key)

        Raises MarkerUnavailable.
        """
        reason = why_not_by_sysctl()
        if reason is not None:
            raise MarkerUnavailable(reason)
        self._own = own_namespace()
        self._cookies: dict[int, int] = {}
        self._link = self._walk_link = -1
        self._walk_handle: int | None = None
        self._writings = 0
        self._object = BpfObject(
            shipped_object(OBJECT_NAME),
            {"labels": max_flows, "expected": MAX_PLACES, "met": MAX_MET},
            _SETTINGS.pack(self._own, seed, self._own != 0, has_places),
        )
        self._lib = library()
        try:
            self._labels = self._object.map_fd("labels")
            self._expected = self._object.map_fd("expected")
            self._met = self._object.map_fd("met")
            self._places = self._object.map_fd("places")
            if value_octets(self._expected) != _HEAD.size + MAX_EXPECTED * _EXPECTATION.size + _END.size:
                raise MarkerUnavailable(f"{OBJECT_NAME} is of another version than the agent: install again")
            self._walk_handle = self._lib.pointer(
                "bpf_program__attach_iter", self._object.program("scitags_walk"), None
            )
            if self._walk_handle is None:
                raise MarkerUnavailable(f"the kernel has no walk over its sockets: {self._lib.take_messages()}")
            self._walk_link = self._lib.call("bpf_link__fd", self._walk_handle)
            self._link = attach_sock_ops(
                self._object.program_fd("scitags_kernel_label"), cgroup_root() if cgroup is None else cgroup
            )
        except (ConnectionsUnavailable, OSError) as error:
            self.close()
            raise MarkerUnavailable(str(error)) from None
        except MarkerUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """Take the programs away. Sockets keep the labels that they have: remove() and walk() before."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        if self._walk_handle is not None:
            self._lib.call("bpf_link__destroy", self._walk_handle)
            self._walk_handle = None
        self._object.close()

    def set_place(self, namespace: int, cookie: int, place: int) -> None:
        """Sockets of another network namespace may have labels: by number, the kernel's cookie, and the place in keys.

        A place of 0: they may not any more. OSError (E2BIG) when there are too many.
        """
        if not place:
            cookie = self._cookies.pop(namespace, 0)
            with contextlib.suppress(FileNotFoundError):
                self._lib.call("bpf_map_delete_elem", self._places, _ID.pack(cookie))
        elif cookie:
            self._cookies[namespace] = cookie
            self._lib.call("bpf_map_update_elem", self._places, _ID.pack(cookie), pack_place(place), BPF_ANY)

    def put(self, key: bytes, label: int) -> None:
        """The label of a connection, by its key from this host's end. OSError (E2BIG) when there is no room."""
        self._lib.call("bpf_map_update_elem", self._labels, key, pack_label(label), BPF_ANY)

    def remove(self, key: bytes) -> None:
        """No label any more; one that has opened keeps it until the walk."""
        with contextlib.suppress(FileNotFoundError):
            self._lib.call("bpf_map_delete_elem", self._labels, key)

    def expect(self, place: FlowKey, canonical: Canonical, expectations: Sequence[Expectation]) -> None:
        """All that is expected at a place from now on: a key from this host's end, one of whose ports is 0. Where its
        network namespace is not known, in that of this thread at the start. More than MAX_EXPECTED: who is meant cannot
        be said, and nobody is.

        OSError (E2BIG) when there is no room.
        """
        key = self._pack_place(place)
        if not expectations:
            with contextlib.suppress(FileNotFoundError):
                self._lib.call("bpf_map_delete_elem", self._expected, key)
            return
        self._writings += 1
        number = _END.pack(self._writings)
        shown = expectations[:MAX_EXPECTED] if len({one.label for one in expectations}) == 1 else expectations
        shown = shown if len(shown) <= MAX_EXPECTED else ()
        octets = b"".join(one.packed() for one in shown).ljust(MAX_EXPECTED * _EXPECTATION.size, b"\0")
        value = _HEAD.pack(self._writings, len(shown), canonical) + octets + number
        self._lib.call("bpf_map_update_elem", self._expected, key, value, BPF_ANY)

    def _pack_place(self, place: FlowKey) -> bytes:
        near, far = (socket.inet_pton(socket.AF_INET6, one) for one in (place.src, place.dst))
        return _PLACE.pack(
            self._cookies.get(place.namespace, self._own),
            near,
            far,
            *(port.to_bytes(2, "big") for port in (place.src_port, place.dst_port)),
        )

    def met_by(self, expectation: int) -> int:
        """The cookie of the socket that has met it, 0 for none."""
        cookie = ctypes.c_uint64()
        with contextlib.suppress(FileNotFoundError):
            self._lib.call("bpf_map_lookup_elem", self._met, _ID.pack(expectation), ctypes.byref(cookie))
        return cookie.value

    def take_back(self, expectation: int) -> int:
        """Have it met by none any more; the cookie of the socket that was quicker, 0 for none. OSError (E2BIG)."""
        try:
            self._lib.call("bpf_map_update_elem", self._met, _ID.pack(expectation), _NOBODY, BPF_NOEXIST)
        except FileExistsError:
            return self.met_by(expectation)
        return 0

    def decide(self, expectation: int) -> None:
        """A socket that has met it bears what put() says of it from now on, as walk() finds it. OSError (E2BIG)."""
        self._lib.call("bpf_map_update_elem", self._met, _ID.pack(expectation), _NOBODY, BPF_ANY)

    def forget(self, expectation: int) -> None:
        """It has been decided about, and is expected nowhere any more."""
        with contextlib.suppress(FileNotFoundError):
            self._lib.call("bpf_map_delete_elem", self._met, _ID.pack(expectation))

    def walk(self) -> list[SocketReport]:
        """Go over the TCP sockets of this thread's network namespace: those of put() get their labels, those of
        remove() give them back. What became of each whose label is asked for, or was.

        Takes milliseconds, in the kernel. Raises OSError.
        """
        descriptor = self._lib.call("bpf_iter_create", self._walk_link)
        octets = bytearray()
        try:
            while True:
                try:
                    read = os.read(descriptor, _READ_OCTETS)
                except OSError as error:
                    if error.errno == errno.EAGAIN:  # it has gone far, and wants to be asked again
                        continue
                    raise
                if not read:
                    break
                octets += read
        finally:
            os.close(descriptor)
        return [
            SocketReport(key, label, SocketState(state), error, callbacks)
            for key, label, state, error, callbacks in _REPORT.iter_unpack(octets)
        ]


def why_not_by_sysctl(directory: Path = _SYSCTL) -> str | None:
    """What in the settings of this network namespace keeps the kernel from writing labels; None when nothing does."""
    for name, bad in (("auto_flowlabels", _SYSCTL_OFF), ("flowlabel_state_ranges", ("1",))):
        try:
            value = (directory / name).read_text().strip()
        except OSError:
            return f"net.ipv6.{name} cannot be read: is IPv6 on?"
        if value in bad:
            return f"net.ipv6.{name} is {value}: the kernel makes no label of a socket's hash"
    return None


def probe() -> str | None:
    """Why the kernel cannot write labels here, in one line; None when it can."""
    try:
        KernelLabels(1).close()
    except (MarkerUnavailable, OSError) as error:
        return str(error)
    return None
