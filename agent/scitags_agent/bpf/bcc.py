"""The marker's program by BCC, which compiles it on this host: for hosts without libbpf 1, or without the objects.

BCC wants the headers of a kernel, where /lib/modules/RELEASE/build and source point or $BCC_KERNEL_SOURCE says. Labels
are written by the kernel's helper.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from importlib import resources
from pathlib import Path

from scitags_agent.bpf.layout import BPF_PROG_TYPE_SCHED_CLS, ProgLoad
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.system_calls import bpf

SONAME = "libbcc.so.0"
SOURCE_NAME, MAPS_NAME = "marker.bpf.c", "marker_maps.h"
_BPF_PROG_LOAD = 5
_LOG_OCTETS = 1 << 16
_LINES_OF_COMPILER = 3


class BccObject:
    """The compiled program and its maps; its programs are loaded as they are asked for."""

    def __init__(self, max_flows: int) -> None:
        """Raises MarkerUnavailable, with what the compiler said."""
        try:
            self._lib = ctypes.CDLL(SONAME)
        except OSError:
            raise MarkerUnavailable(f"{SONAME} is missing (Debian: apt install python3-bpfcc)") from None
        self._declare()
        self._programs: dict[str, int] = {}
        folder = source_folder()
        flags = [b"-DSCITAGS_BCC", b"-DSCITAGS_MAX_FLOWS=%d" % max_flows, b"-I" + os.fsencode(folder), *_more_headers()]
        text = _one_text(folder)
        self._module, said = _quietly(
            lambda: self._lib.bpf_module_create_c_from_string(
                text, 0, (ctypes.c_char_p * len(flags))(*flags), len(flags), True, None
            )
        )
        if not self._module:
            lines = [line for line in said.splitlines() if line.strip()][:_LINES_OF_COMPILER]
            raise MarkerUnavailable("BCC cannot compile the program: " + ("; ".join(lines) or "it does not say why"))

    def _declare(self) -> None:
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, arguments in (
            (
                "bpf_module_create_c_from_string",
                pointer,
                (text, ctypes.c_uint, ctypes.POINTER(text), ctypes.c_int, ctypes.c_bool, text),
            ),
            ("bpf_module_destroy", None, (pointer,)),
            ("bpf_table_fd", ctypes.c_int, (pointer, text)),
            ("bpf_function_start", pointer, (pointer, text)),
            ("bpf_function_size", ctypes.c_size_t, (pointer, text)),
        ):
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments

    def close(self) -> None:
        """Give all back; the kernel keeps what is still attached."""
        for descriptor in self._programs.values():
            os.close(descriptor)
        self._programs.clear()
        if self._module:
            self._lib.bpf_module_destroy(self._module)
            self._module = None

    def map_fd(self, name: str) -> int:
        """The descriptor of a map."""
        descriptor = int(self._lib.bpf_table_fd(self._module, name.encode()))
        assert descriptor >= 0, name
        return descriptor

    def global_variables(self) -> int:
        """The descriptor of the map that holds struct state."""
        return self.map_fd("marker_state")

    def program_fd(self, name: str) -> int:
        """The descriptor of a program. Raises MarkerUnavailable when the kernel does not take it."""
        if name not in self._programs:
            self._programs[name] = self._load(name)
        return self._programs[name]

    def _load(self, name: str) -> int:
        start = self._lib.bpf_function_start(self._module, name.encode())
        octets = self._lib.bpf_function_size(self._module, name.encode())
        log = ctypes.create_string_buffer(_LOG_OCTETS)
        request = ProgLoad(prog_type=BPF_PROG_TYPE_SCHED_CLS, insn_cnt=octets // 8, insns=start, license=b"Apache-2.0")
        try:
            return bpf(_BPF_PROG_LOAD, request)
        except OSError as first:
            request.log_level, request.log_size, request.log_buf = 1, len(log), ctypes.addressof(log)
            try:
                return bpf(_BPF_PROG_LOAD, request)
            except OSError:
                said = "; ".join(log.value.decode(errors="replace").splitlines()[-_LINES_OF_COMPILER:])
                raise MarkerUnavailable(f"the kernel does not take what BCC made: {first.strerror} ({said})") from None


def _one_text(folder: Path) -> bytes:
    """The source with its maps in the same file: in an included one, BCC does not see that they are used."""
    maps = (folder / MAPS_NAME).read_bytes()
    return (folder / SOURCE_NAME).read_bytes().replace(b'#include "%s"' % MAPS_NAME.encode(), maps)


def source_folder() -> Path:
    """Where the program's source is. MarkerUnavailable when it was not installed."""
    folder = Path(str(resources.files("scitags_agent.bpf").joinpath("source")))
    if not (folder / SOURCE_NAME).is_file():
        raise MarkerUnavailable(f"{SOURCE_NAME} is not in this installation: install a wheel, or the agent again")
    return folder


def _more_headers() -> list[bytes]:
    """For $BCC_KERNEL_SOURCE: generated headers that a distribution keeps apart, from $SCITAGS_KERNEL_BUILD."""
    build = os.environ.get("SCITAGS_KERNEL_BUILD")
    if build is None:
        return []
    places = ("arch/x86/include/generated", "include", "arch/x86/include/generated/uapi", "include/generated/uapi")
    return [f"-I{build}/{place}".encode() for place in places]


def _quietly(call: object) -> tuple[int | None, str]:
    """What a call returns, and what it meanwhile wrote to standard error: the compiler knows no other way."""
    assert callable(call)
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            found = call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return found, file.read().decode(errors="replace")
