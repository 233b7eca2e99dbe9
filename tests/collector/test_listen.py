"""The command, listening: on whatever ports, to whatever comes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scitags_core import label
from tests.collector import messages as m
from tests.collector.test_observe import OBSERVE
from tests.netns import packets as p

LABEL = label.encode(2, 15, 7)
Run = Callable[..., subprocess.Popen[str]]


def free_port(family: socket.AddressFamily, address: str) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts the observer, and returns when it listens."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        ready = tmp_path / "ready"
        command = [*OBSERVE, *arguments, "--ready", str(ready)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.terminate()
    found = process.communicate(timeout=30)
    assert process.returncode == 0, found[1]
    return found


def test_several_exporters_and_formats_at_two_ports(run: Run) -> None:
    four = free_port(socket.AF_INET, "127.0.0.1")
    six = free_port(socket.AF_INET6, "::1")
    process = run("--listen", f"127.0.0.1:{four}", "--listen", f"[::1]:{six}", "--json")
    known = m.template(256, m.IPV6_FLOW)
    frame = p.ethernet(p.ipv6(p.tcp(4005) + bytes(900), label=LABEL))
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other,
    ):
        for datagram in (
            m.ipfix(m.set_of(256, m.flow(LABEL)), sequence=0),
            m.ipfix(known, sequence=1),
            m.ipfix(known, m.set_of(256, m.flow(0, port=4009)), domain=2),
            m.sflow(m.flow_sample(m.raw_header(frame), rate=100)),
            b"rubbish",
        ):
            one.sendto(datagram, ("127.0.0.1", four))
        other.sendto(
            m.v9(m.template(300, m.IPV6_FLOW, set_number=0), m.set_of(300, m.flow(LABEL, port=4007))), ("::1", six)
        )
    found = json.loads(finish(process)[0])
    assert [(one["address"], one["kind"], one["records"]) for one in found["exporters"]] == [
        ("127.0.0.1", "IPFIX", 1),
        ("127.0.0.1", "IPFIX", 1),
        ("127.0.0.1", "sFlow v5", 1),
        ("::1", "NetFlow v9", 1),
    ]
    [atlas] = [one for one in found["rows"] if one["experiment"] == "atlas"]
    assert (atlas["packets"], atlas["flows"]) == (120, 3)
    assert any(note.startswith("1 datagram could not be read") for note in found["notes"])
    assert found["dropped"] == 0


def test_json_lines_and_table(run: Run, tmp_path: Path) -> None:
    port = free_port(socket.AF_INET, "127.0.0.1")
    fields = [one for one in m.IPV6_FLOW if one[0] != 31]
    blind = m.flow(0, port=4002)
    messages = (
        m.ipfix(m.template(256, m.IPV6_FLOW), m.set_of(256, m.flow(LABEL))),
        m.ipfix(m.template(256, fields), m.set_of(256, blind[:37] + blind[41:]), domain=2),
    )
    outputs = []
    for form in (["--json-lines"], ["--flows", "--sampling", "10"]):
        (tmp_path / "ready").unlink(missing_ok=True)
        process = run("--listen", f"127.0.0.1:{port}", *form)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for message in messages:
                sender.sendto(message, ("127.0.0.1", port))
        outputs.append(finish(process))
    (lines, notes), (table, _) = outputs
    tagged, other = map(json.loads, lines.splitlines())
    assert (tagged["label"], tagged["tag_from"], tagged["experiment"], tagged["octets"]) == (
        LABEL,
        "label",
        "atlas",
        10_000,
    )
    assert (other["label"], other["label_untold"], other["experiment"]) == (None, True, None)
    assert "domain" not in lines
    assert "IPFIX from 127.0.0.1, 2: exports no flow label" in notes
    assert "(IPv6, no label exported)" in table
    assert "1:10" in table
    assert "atlas" in table


def test_a_port_that_is_taken_is_1(run: Run) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        command = [*OBSERVE, "--listen", f"127.0.0.1:{port}", "--duration", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"UDP port {port} of 127.0.0.1: Address already in use" in done.stderr


def test_parquet_without_its_library_is_1_at_once(tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError('not here')")
    command = [*OBSERVE, "--listen", "127.0.0.1:0", "--parquet", str(tmp_path / "seen.parquet")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode == 1
    assert "--parquet needs pyarrow: pip install 'scitags-suite[collector]' (not here)" in done.stderr


def test_a_parquet_file_that_cannot_be_written_is_1_after_the_report(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere" / "seen.parquet")
    command = [*OBSERVE, "--listen", "127.0.0.1:0", "--duration", "0.3", "--parquet", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "By chance" in done.stdout
    assert path in done.stderr


@pytest.mark.parametrize("bad", ["x", "70000", "host:1", "1.2.3:5", "[::1]", ""])
def test_a_bad_address_is_2(bad: str) -> None:
    done = subprocess.run([*OBSERVE, "--listen", bad], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"{bad!r} is no UDP port" in done.stderr
