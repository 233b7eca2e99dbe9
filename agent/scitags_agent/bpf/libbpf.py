"""libbpf through ctypes: what the marker needs of it, with errors that say what libbpf said."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from scitags_agent.bpf.layout import TestRunOpts
from scitags_agent.bpf.system_calls import BPF_ANY, BPF_NOEXIST, bpf
from scitags_core.errors import ScitagsError

__all__ = ["BPF_ANY", "BPF_NOEXIST", "BpfObject", "Library", "MarkerUnavailable", "library", "shipped_object"]
SONAME = "libbpf.so.1"
_LOG_LINES = 12
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_WARNING = 0


class MarkerUnavailable(ScitagsError):
    """Packets cannot be marked here; the message says what is missing and how to get it."""


def shipped_object(name: str) -> Path:
    """A compiled program of this installation. Raises MarkerUnavailable where it has none."""
    path = Path(str(resources.files("scitags_agent.bpf").joinpath(name)))
    if not path.is_file():
        raise MarkerUnavailable(f"{name} is not in this installation: it was built without clang")
    return path


class Library:
    """The loaded library. Its warnings are kept, not printed."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL(SONAME, use_errno=True)
        except OSError:
            raise MarkerUnavailable(f"{SONAME} is missing (Debian: apt install libbpf1)") from None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._messages: list[str] = []
        self._printer = _PRINT(self._print)  # must live as long as libbpf may call it
        self._declare()
        self._lib.libbpf_set_print(self._printer)

    def _declare(self) -> None:
        pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        for name, result, arguments in (
            ("bpf_object__open_file", pointer, (text, pointer)),
            ("bpf_object__load", integer, (pointer,)),
            ("bpf_object__close", None, (pointer,)),
            ("bpf_object__find_map_by_name", pointer, (pointer, text)),
            ("bpf_object__next_map", pointer, (pointer, pointer)),
            ("bpf_object__find_program_by_name", pointer, (pointer, text)),
            ("bpf_object__next_program", pointer, (pointer, pointer)),
            ("bpf_program__name", text, (pointer,)),
            ("bpf_map__set_pin_path", integer, (pointer, text)),
            ("bpf_map__reuse_fd", integer, (pointer, integer)),
            ("bpf_map__set_max_entries", integer, (pointer, ctypes.c_uint32)),
            ("bpf_map__name", text, (pointer,)),
            ("bpf_map__value_size", ctypes.c_uint32, (pointer,)),
            ("bpf_map__fd", integer, (pointer,)),
            ("bpf_map__initial_value", pointer, (pointer, pointer)),
            ("bpf_map__set_initial_value", integer, (pointer, text, ctypes.c_size_t)),
            ("bpf_program__attach_iter", pointer, (pointer, pointer)),
            ("bpf_link__fd", integer, (pointer,)),
            ("bpf_link__destroy", integer, (pointer,)),
            ("bpf_iter_create", integer, (integer,)),
            ("bpf_program__fd", integer, (pointer,)),
            ("bpf_map_update_elem", integer, (integer, text, text, ctypes.c_uint64)),
            ("bpf_map_delete_elem", integer, (integer, text)),
            ("bpf_map_lookup_elem", integer, (integer, text, pointer)),
            ("bpf_prog_test_run_opts", integer, (integer, ctypes.POINTER(TestRunOpts))),
            ("libbpf_num_possible_cpus", integer, ()),
        ):
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments

    def _print(self, level: int, form: bytes, arguments: int) -> int:
        if level == _WARNING:
            buffer = ctypes.create_string_buffer(1024)
            self._libc.vsnprintf(buffer, ctypes.c_size_t(len(buffer)), form, ctypes.c_void_p(arguments))
            self._messages.append(buffer.value.decode("utf-8", "replace").strip())
            del self._messages[:-_LOG_LINES]
        return 0

    def call(self, name: str, *arguments: Any) -> int:
        """A function that returns a negative errno on failure. Raises OSError."""
        result = int(getattr(self._lib, name)(*arguments))
        if result < 0:
            raise OSError(-result, f"{name}: {os.strerror(-result)}")
        return result

    def pointer(self, name: str, *arguments: Any) -> int | None:
        """A function that returns a pointer, None when it is null."""
        found = getattr(self._lib, name)(*arguments)
        return None if found is None else int(found)

    def text(self, name: str, *arguments: Any) -> str:
        """A function that returns a string."""
        return (getattr(self._lib, name)(*arguments) or b"").decode()

    def initial_value(self, of_map: int) -> tuple[int, int]:
        """Where the initial value of a map of global variables lies, and its size in octets."""
        size = ctypes.c_size_t()
        return int(self._lib.bpf_map__initial_value(of_map, ctypes.byref(size)) or 0), size.value

    def release(self, address: int, octets: int) -> None:
        """Give the pages back; they read as zeros from then on. Nothing happens where the kernel will not."""
        if address % mmap.PAGESIZE == 0 and octets:
            self._libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(octets), mmap.MADV_REMOVE)

    def close(self, handle: int) -> None:
        self._lib.bpf_object__close(handle)

    def take_messages(self) -> str:
        """What libbpf warned of since the last call, in one line."""
        text = "; ".join(self._messages)
        self._messages.clear()
        return text

    def syscall(self, command: int, attributes: ctypes.Structure) -> int:
        """bpf(2), for what this libbpf does not know. Raises OSError."""
        return bpf(command, attributes)


@cache
def library() -> Library:
    """The one library of this process. Raises MarkerUnavailable."""
    return Library()


class BpfObject:
    """A loaded object file. Raises MarkerUnavailable when the kernel does not take it."""

    def __init__(
        self,
        path: Path,
        max_entries: dict[str, int],
        constants: bytes = b"",
        *,
        pinned: bool = True,
        maps: Mapping[str, int] | None = None,
    ) -> None:
        """Load it.

        max_entries   sizes maps by name, before they are made
        constants     the program's settings
        pinned        maps that ask to be pinned to the file system are; ours do not ask
        maps          those of another object, by descriptor, that take the places of the object's own
        """
        self.lib = library()
        self.lib.take_messages()
        self._borrowed: set[int] = set()  # maps; each then has the name that it has in its own object
        self._handle = self.lib.pointer("bpf_object__open_file", os.fsencode(path), None)
        if self._handle is None:
            raise MarkerUnavailable(f"{path.name} cannot be opened: {self.lib.take_messages()}")
        try:
            for name, entries in max_entries.items():
                self.lib.call("bpf_map__set_max_entries", self._map(name), entries)
            for name, descriptor in (maps or {}).items():
                self._borrowed.add(borrowing := self._map(name))
                self.lib.call("bpf_map__reuse_fd", borrowing, descriptor)
            if not pinned:
                for one in self._maps():
                    self.lib.call("bpf_map__set_pin_path", one, None)
            if constants:
                self.lib.call("bpf_map__set_initial_value", self._variables(".rodata"), constants, len(constants))
            self.lib.call("bpf_object__load", self._handle)
        except OSError as error:
            self.close()
            raise MarkerUnavailable(_why_not(error, self.lib.take_messages())) from None
        self._let_go_of_initial_values()

    def _let_go_of_initial_values(self) -> None:
        """Give the memory back in which libbpf keeps a copy of what global variables begin with: zeros, of 3 MB."""
        for one in self._maps():
            if self.lib.text("bpf_map__name", one).endswith(".bss"):
                self.lib.release(*self.lib.initial_value(one))

    def _maps(self) -> Iterator[int]:
        """The object's own."""
        current = self.lib.pointer("bpf_object__next_map", self._handle, None)
        while current is not None:
            if current not in self._borrowed:
                yield current
            current = self.lib.pointer("bpf_object__next_map", self._handle, current)

    def _variables(self, section: str) -> int:
        """The map that holds the global variables of a section."""
        for one in self._maps():
            if self.lib.text("bpf_map__name", one).endswith(section):
                return one
        raise MarkerUnavailable(f"the object has no {section}: it is not ours")

    def close(self) -> None:
        """Give programs and maps back; the kernel keeps what is still attached."""
        if self._handle is not None:
            self.lib.close(self._handle)
            self._handle = None

    def _map(self, name: str) -> int:
        found = self.lib.pointer("bpf_object__find_map_by_name", self._handle, name.encode())
        assert found is not None, name
        return found

    def map_fd(self, name: str) -> int:
        return self.lib.call("bpf_map__fd", self._map(name))

    def global_variables(self) -> int:
        """The descriptor of the map that holds the program's zero-initialised global variables."""
        return self.lib.call("bpf_map__fd", self._variables(".bss"))

    def counters(self) -> int:
        """The descriptor of the map of the section .bss.counters."""
        return self.lib.call("bpf_map__fd", self._variables(".counters"))

    def program(self, name: str) -> int:
        """libbpf's handle of a program."""
        found = self.lib.pointer("bpf_object__find_program_by_name", self._handle, name.encode())
        assert found is not None, name
        return found

    def program_fd(self, name: str) -> int:
        return self.lib.call("bpf_program__fd", self.program(name))

    def program_names(self) -> list[str]:
        """In the order of the object."""
        names = []
        current = self.lib.pointer("bpf_object__next_program", self._handle, None)
        while current is not None:
            names.append(self.lib.text("bpf_program__name", current))
            current = self.lib.pointer("bpf_object__next_program", self._handle, current)
        return names


def _why_not(error: OSError, messages: str) -> str:
    if isinstance(error, PermissionError):
        return "the right to load eBPF programs is missing: run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    return f"the kernel does not take the program: {error.strerror}" + (f" ({messages})" if messages else "")
