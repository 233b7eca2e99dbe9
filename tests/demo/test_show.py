"""The demonstration itself: run whole, run without root, and ended in every way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scitags_demo.kernel import may_make_namespaces

DEMO = [sys.executable, "-c", "import sys; from scitags_core.cli import main; sys.exit(main())", "demo"]
AS_NOBODY = [sys.executable, str(Path(__file__).with_name("as_nobody.py"))]
VARIABLE = "SCITAGS_DEMO_TEST"
RUN_SECONDS = 120.0
GONE_SECONDS = 10.0

needs_root = pytest.mark.skipif(not may_make_namespaces(), reason="needs root, to make network namespaces")


class Shop:
    """Runs the demonstration with a temporary directory of its own, and finds whatever is left of it."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self._mark = uuid.uuid4().hex

    def start(self, *arguments: str, before: list[str] | None = None) -> subprocess.Popen[str]:
        home = self.temporary.with_name("no-home")  # where nothing of the user's is found or made
        environment = {**os.environ, VARIABLE: self._mark, "TMPDIR": str(self.temporary), "HOME": str(home)}
        return subprocess.Popen(
            [*(before or []), *DEMO, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, *arguments: str, before: list[str] | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, before=before)
        try:
            output, errors = process.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode, output, errors

    def processes(self) -> list[int]:
        """Every process that was started by the demonstration, or by what it started."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{VARIABLE}={self._mark}".encode() in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        return found

    def nothing_is_left(self) -> bool:
        """Whether processes, and with them their namespaces, and files are gone within a while."""
        deadline = time.monotonic() + GONE_SECONDS
        while self.processes() or any(self.temporary.iterdir()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture
def shop() -> Iterator[Shop]:
    pytest.importorskip("pyroute2", reason="pyroute2 is not installed")
    # Not in pytest's own directory, which other users cannot enter, and whose path is long.
    temporary = Path(tempfile.mkdtemp(prefix="shop-", dir="/tmp"))
    temporary.chmod(0o1777)
    # What a shell runs in the background ignores SIGINT, and so would what it starts.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Shop(temporary)
    signal.signal(signal.SIGINT, usual)
    shutil.rmtree(temporary, ignore_errors=True)


def agreed(status: int, output: str, errors: str) -> dict[str, Any]:
    """The report of a run that went well."""
    assert status == 0, output + errors
    content: dict[str, Any] = json.loads(output)
    assert content["agrees"] is True
    assert [row["problems"] for row in content["rows"] if row["problems"]] == []
    return content


@needs_root
def test_all_packets_are_marked_and_both_sides_agree(shop: Shop, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    content = agreed(*shop.run("--json", "--seconds", "4", "--seed", "3", "--output", str(tmp_path / "pictures")))
    tagged = [row for row in content["rows"] if row["experiment_id"] is not None]
    if not content["marking"]:
        pytest.skip("this host cannot mark packets: compared by fireflies alone")
    assert len({row["experiment_id"] for row in tagged}) >= 3
    assert sum(row["packets"] for row in tagged) > 5000
    assert [row for row in tagged if row["packets_marked"] != row["packets"]] == []
    assert sum(row["fireflies"]["end"]["decoded"] for row in tagged) == 25
    assert content["dropped"] == 0
    assert {Path(path).name for path in content["pictures"]} == {"traffic.png", "traffic.svg"}
    assert all(Path(path).stat().st_size for path in content["pictures"])
    assert shop.nothing_is_left()


@needs_root
def test_without_root_the_fireflies_are_shown(shop: Shop) -> None:
    content_and_errors = shop.run("--json", "--seconds", "2", before=AS_NOBODY)
    errors = content_and_errors[2]
    if "user namespaces, which are forbidden" in errors:
        pytest.skip("user namespaces are forbidden on this host")
    if "as_nobody.py" in errors and "mount" in errors:
        pytest.skip("mount namespaces of one's own are not to be had here, as in a chroot")
    content = agreed(*content_and_errors)
    assert "Not root: in a user namespace of our own." in errors
    if not content["marking"]:
        assert errors.count("No packet can be marked here: ") == 1
        assert errors.count("The fireflies alone are shown.") == 1
    assert sum(row["fireflies"]["start"]["decoded"] for row in content["rows"]) == 25
    assert sum(row["flows"]["decoded"] for row in content["rows"]) >= 21
    assert shop.nothing_is_left()


@needs_root
def test_where_namespaces_are_forbidden_that_is_said(shop: Shop) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    # Root of nothing: it may not map itself into a user namespace either.
    status, output, errors = shop.run("--seconds", "2", before=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
    assert status == 1
    assert "namespace" not in output
    assert len(errors.splitlines()) == 1
    assert "this needs root, or user namespaces, which are forbidden here" in errors
    assert shop.nothing_is_left()


def named_namespaces() -> list[Path]:
    """Those that `ip netns` lists."""
    directory = Path("/run/netns")
    return sorted(directory.iterdir()) if directory.is_dir() else []


@needs_root
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
# While the namespaces are being made; while files are under way.
@pytest.mark.parametrize(("processes", "seconds"), [(3, 0.0), (9, 1.5)])
def test_however_it_ends_nothing_is_left(shop: Shop, number: signal.Signals, processes: int, seconds: float) -> None:
    before = named_namespaces()
    process = shop.start("--seconds", "20")
    deadline = time.monotonic() + GONE_SECONDS
    while len(shop.processes()) < processes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=GONE_SECONDS)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert shop.nothing_is_left()
    assert named_namespaces() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "100"], "scitags: 100 seconds are outside 2..45"),
        (["--registry", "/nowhere/registry.json"], "scitags: /nowhere/registry.json: No such file or directory"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(shop: Shop, arguments: list[str], message: str) -> None:
    status, _, errors = shop.run(*arguments)
    assert status == 1
    assert errors.strip() == message
    assert shop.nothing_is_left()


def test_a_package_that_is_missing_is_named(shop: Shop) -> None:
    without = "import sys; sys.modules['matplotlib'] = None; from scitags_core.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", without, "demo", "--output", str(shop.temporary / "pictures")],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "scitags demo: not installed: matplotlib: pip install 'scitags-suite[demo]'\n"
    assert done.stdout == ""
