"""Build hook: compile bpf/*.bpf.c into the agent's package, so that an installation needs no compiler.

Without clang the build goes on: everything but the marker works, and the marker says what is missing.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("bpf")
OBJECTS = Path("agent/scitags_agent/bpf")
SOURCES_FOR_BCC = "source"
FOR_BCC = ("marker.bpf.c", "marker.h", "marker_maps.h", "marker_table.h", "packet.h")
# Without the last, the object would name the directory that it was built in.
CFLAGS = ("-g", "-O2", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-fdebug-compilation-dir=.")


class CompileBpf(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling finds this class by its base."""

    PLUGIN_NAME = "compile-bpf"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        root = Path(self.root)
        if self.target_name != "wheel":
            return
        for stale in (root / OBJECTS).glob("*.bpf.o"):
            stale.unlink()
        # BCC compiles on the host that marks.
        (root / OBJECTS / SOURCES_FOR_BCC).mkdir(exist_ok=True)
        for name in FOR_BCC:
            shutil.copyfile(root / SOURCES / name, root / OBJECTS / SOURCES_FOR_BCC / name)
        clang = shutil.which("clang")
        if clang is None:
            self.say("clang is not installed: built without the programs that mark packets (bpf/*.bpf.c)")
            return
        for source in sorted((root / SOURCES).glob("*.bpf.c")):
            self.compile(clang, SOURCES / source.name, root / OBJECTS / f"{source.name.removesuffix('.c')}.o")

    def compile(self, clang: str, source: Path, target: Path) -> None:
        """Compile one program, source relative to the root; UAPI headers are where the distribution keeps them."""
        headers = f"-I/usr/include/{platform.machine()}-linux-gnu"
        command = [clang, *CFLAGS, headers, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            target.unlink(missing_ok=True)
            self.say(f"clang cannot compile {source.name}: built without it. Are libbpf-dev and linux-libc-dev there?")
            self.say(done.stderr.strip())

    def say(self, text: str) -> None:
        sys.stderr.write(f"scitags-suite: {text}\n")
