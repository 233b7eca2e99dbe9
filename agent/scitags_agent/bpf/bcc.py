"""The marker's program by BCC, which compiles it on this host: for hosts without libbpf 1, or without the objects.

BCC wants the headers of a kernel, where /lib/modules/RELEASE/build and source point or $BCC_KERNEL_SOURCE says. Labels
are written by the kernel's helper.

A process of its own compiles and loads, and hands over the descriptors: a compiler takes a hundred megabytes that it
does not give back, and one that crashes takes its process with it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path

from scitags_agent.bpf.layout import BPF_PROG_TYPE_SCHED_CLS, ProgLoad
from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.system_calls import bpf

SONAME = "libbcc.so.0"
SOURCE_NAME, MAPS_NAME = "marker.bpf.c", "marker_maps.h"
MAPS = ("marker_state", "marker_counters", "overflow", "static_labels")
PROGRAMS = ("scitags_label", "scitags_label_l3", "scitags_label_all", "scitags_label_all_l3")
COMPILE_SECONDS = 120.0
_BPF_PROG_LOAD = 5
_LOG_OCTETS = 1 << 16
_LINES_SHOWN = 3
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}  # as the kernel names them


class BccObject:
    """The loaded programs and their maps."""

    def __init__(self, max_flows: int) -> None:
        """Compile and load, which takes seconds. Raises MarkerUnavailable, with what the compiler said."""
        source_folder()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-m", "scitags_agent.bpf.bcc", str(theirs.fileno()), str(max_flows)]
            try:
                done = subprocess.run(  # noqa: S603
                    command, pass_fds=[theirs.fileno()], capture_output=True, check=False, timeout=COMPILE_SECONDS
                )
            except subprocess.TimeoutExpired:
                raise MarkerUnavailable(f"BCC has not compiled the program within {COMPILE_SECONDS:.0f} s") from None
            if done.returncode != 0:
                raise MarkerUnavailable(f"BCC cannot load the program: {_why(done)}")
            names = MAPS + PROGRAMS
            descriptors = socket.recv_fds(ours, 1, len(names))[1]
        self._descriptors = dict(zip(names, descriptors, strict=True))

    def close(self) -> None:
        """Give all back; the kernel keeps what is still attached."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def map_fd(self, name: str) -> int:
        """The descriptor of a map."""
        return self._descriptors[name]

    def program_fd(self, name: str) -> int:
        """The descriptor of a program."""
        return self._descriptors[name]

    def global_variables(self) -> int:
        """The descriptor of the map that holds struct state."""
        return self._descriptors["marker_state"]

    def counters(self) -> int:
        """The descriptor of the map that holds struct all_counters."""
        return self._descriptors["marker_counters"]


def source_folder() -> Path:
    """Where the program's source is. MarkerUnavailable when it was not installed."""
    folder = Path(str(resources.files("scitags_agent.bpf").joinpath("source")))
    if not (folder / SOURCE_NAME).is_file():
        raise MarkerUnavailable(f"{SOURCE_NAME} is not in this installation: install a wheel, or the agent again")
    return folder


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else ""
    return "; ".join([*lines[:_LINES_SHOWN], *([ended] if ended or not lines else [])]) or "it does not say why"


# --- in the process of its own -------------------------------------------------------------------


def _compile_and_load(folder: Path, max_flows: int) -> list[int]:
    """The descriptors of MAPS and of PROGRAMS; SystemExit says what is wrong."""
    try:
        library = ctypes.CDLL(SONAME)
    except OSError:
        sys.exit(f"{SONAME} is missing (Debian: apt install python3-bpfcc)")
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    create = library.bpf_module_create_c_from_string
    create.restype = pointer
    create.argtypes = (text, ctypes.c_uint, ctypes.POINTER(text), ctypes.c_int, ctypes.c_bool, text)
    library.bpf_table_fd.argtypes = library.bpf_function_start.argtypes = (pointer, text)
    library.bpf_function_size.argtypes = (pointer, text)
    library.bpf_function_start.restype, library.bpf_function_size.restype = pointer, ctypes.c_size_t
    flags = [b"-DSCITAGS_BCC", b"-DSCITAGS_MAX_FLOWS=%d" % max_flows, b"-I" + os.fsencode(folder), *_more_headers()]
    module = create(_one_text(folder), 0, (text * len(flags))(*flags), len(flags), True, None)
    if not module:
        sys.exit(1)  # the compiler has said why
    maps = [library.bpf_table_fd(module, name.encode()) for name in MAPS]
    programs = [
        _load(library.bpf_function_start(module, name.encode()), library.bpf_function_size(module, name.encode()))
        for name in PROGRAMS
    ]
    return maps + programs


def _load(instructions: int, octets: int) -> int:
    log = ctypes.create_string_buffer(_LOG_OCTETS)
    request = ProgLoad(BPF_PROG_TYPE_SCHED_CLS, octets // 8, instructions, b"Apache-2.0")
    try:
        return bpf(_BPF_PROG_LOAD, request)
    except OSError as first:
        request.log_level, request.log_size, request.log_buf = 1, len(log), ctypes.addressof(log)
        try:
            return bpf(_BPF_PROG_LOAD, request)
        except OSError:
            said = "; ".join(log.value.decode(errors="replace").splitlines()[-_LINES_SHOWN:])
            sys.exit(f"the kernel does not take it: {first.strerror} ({said})")


def _one_text(folder: Path) -> bytes:
    """The source with its maps in the same file: in an included one, BCC does not see that they are used."""
    maps = (folder / MAPS_NAME).read_bytes()
    return (folder / SOURCE_NAME).read_bytes().replace(b'#include "%s"' % MAPS_NAME.encode(), maps)


def _more_headers() -> list[bytes]:
    """For $BCC_KERNEL_SOURCE: generated headers that a distribution keeps apart, from $SCITAGS_KERNEL_BUILD."""
    build = os.environ.get("SCITAGS_KERNEL_BUILD")
    if build is None:
        return []
    machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
    places = (
        f"arch/{machine}/include/generated",
        f"arch/{machine}/include/generated/uapi",
        "include",
        "include/generated/uapi",
    )
    return [f"-I{build}/{place}".encode() for place in places]


def main() -> None:
    """Compile, load, and send the descriptors to the socket whose number is the first argument."""
    descriptors = _compile_and_load(source_folder(), int(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        socket.send_fds(parent, [b"."], descriptors)


if __name__ == "__main__":
    main()
