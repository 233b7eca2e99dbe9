"""The wheel and the sdist, built from a copy of the tree and installed as a site would."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parent.parent.parent
OBJECT = "scitags_agent/bpf/marker.bpf.o"
CONNECTIONS = "scitags_agent/bpf/connections.bpf.o"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.bpf.o", "demo-output")
BUILD_SECONDS = 300


class Built(msgspec.Struct):
    """A wheel, what its build said, and a fresh environment that it is installed in."""

    wheel: Path
    said: str
    python: Path

    def run(self, *arguments: str, path: str = "/nonexistent") -> subprocess.CompletedProcess[str]:
        """`scitags` of that environment, with nothing of the checkout and no compiler in sight."""
        code = "import sys; from scitags_core.cli import main; sys.exit(main())"
        return subprocess.run(
            [self.python, "-I", "-c", code, *arguments],
            # Nor does BCC find the headers of a kernel.
            env={"PATH": path, "HOME": str(self.python.parent), "BCC_KERNEL_SOURCE": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def build(directory: Path, source: Path, path: str, kind: str = "--wheel") -> tuple[Path, str]:
    """Build from a tree with this PATH; the product and what was said."""
    out = directory / "dist"
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", out, source],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [product] = out.iterdir()
    return product, done.stdout + done.stderr


def install(directory: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel; what it depends on is lent by this one. Its interpreter."""
    environment = directory / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=BUILD_SECONDS)
    [packages] = (environment / "lib").glob("python3*/site-packages")
    # A plain path, whose own .pth files (the editable checkout) are not followed.
    (packages / "lent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def built(directory: Path, path: str) -> Built:
    source = directory / "source"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    wheel, said = build(directory, source, path)
    return Built(wheel, said, install(directory, wheel))


@pytest.fixture(scope="module")
def with_clang(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if shutil.which("clang") is None:
        pytest.skip("needs clang")
    return built(tmp_path_factory.mktemp("with"), os.environ["PATH"])


@pytest.fixture(scope="module")
def without_clang(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("without")
    return built(directory, str(directory))


def test_the_wheel_holds_the_compiled_program_and_our_packages_alone(with_clang: Built) -> None:
    names = zipfile.ZipFile(with_clang.wheel).namelist()
    others = {OBJECT.replace("marker", name) for name in ("marker_in_place", "marker_writer")}
    assert {OBJECT, CONNECTIONS} | others <= set(names)
    tops = {name.partition("/")[0] for name in names}
    packages = {top for top in tops if not top.endswith(".dist-info")}
    assert {"scitags_core", "scitags_agent", "scitags_collector", "scitags_demo", "scitags_rucio"} <= packages
    assert all(top.startswith("scitags_") for top in packages)
    # The one source that is compiled where it marks, by BCC.
    sources = {name for name in names if name.endswith((".c", ".h"))}
    for_bcc = ("marker.bpf.c", "marker.h", "marker_maps.h", "marker_table.h", "packet.h")
    assert sources == {f"scitags_agent/bpf/source/{name}" for name in for_bcc}
    assert any(name.endswith("scitags_core/registry_history.json") for name in names)


def test_the_compiled_program_names_no_directory_of_its_builder(with_clang: Built) -> None:
    program = zipfile.ZipFile(with_clang.wheel).read(OBJECT)
    assert b"bpf/marker.bpf.c" in program
    assert str(with_clang.wheel.parent.parent).encode() not in program


def test_it_runs_where_there_is_no_compiler(with_clang: Built) -> None:
    done = with_clang.run("tag", "decode", "143")
    assert done.returncode == 0, done.stderr
    assert "Production Input" in done.stdout
    listed = with_clang.run("plugins", "--json")
    assert {json.loads(line)["name"] for line in listed.stdout.splitlines()} >= {"core", "agent", "collector", "demo"}


def test_it_marks_where_there_is_no_compiler(with_clang: Built) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads an eBPF program")
    done = with_clang.run("agent", "probe", "--json")
    assert (json.loads(done.stdout), done.returncode) == ({"can_mark": True, "reason": ""}, 0)


def test_a_wheel_built_without_clang_says_so_when_built_and_when_the_marker_is_asked_for(
    without_clang: Built,
) -> None:
    assert OBJECT not in zipfile.ZipFile(without_clang.wheel).namelist()
    assert "clang is not installed" in without_clang.said
    assert without_clang.run("tag", "decode", "143").returncode == 0
    done = without_clang.run("agent", "probe")
    assert done.returncode == 1
    assert "marker.bpf.o is not in this installation: it was built without clang" in done.stdout
    assert "install clang" in done.stdout.lower() or "clang and libbpf-dev" in done.stdout


def test_a_stale_object_is_not_shipped(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    stale = source / "agent" / OBJECT
    stale.write_bytes(b"stale")
    wheel, _ = build(tmp_path, source, str(tmp_path))
    assert OBJECT not in zipfile.ZipFile(wheel).namelist()


def test_the_sdist_holds_what_a_wheel_is_built_from(tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("needs clang")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    archive, _ = build(tmp_path, source, os.environ["PATH"], "--sdist")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
        top = names[0].partition("/")[0]
        assert {f"{top}/{name}" for name in ("hatch_build.py", "bpf/marker.bpf.c", "bpf/marker.h", "LICENSE")} <= {
            *names
        }
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "unpacked"], check=True, timeout=60)
    (tmp_path / "second").mkdir()
    wheel, _ = build(tmp_path / "second", tmp_path / "unpacked" / top, os.environ["PATH"])
    assert OBJECT in zipfile.ZipFile(wheel).namelist()
