"""`scitags observe` as a user runs it: on files, and live on a real link."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest

from scitags_core import exthdr, firefly, label
from scitags_core.cli import main
from scitags_core.flow import FlowEvent, FlowKey, FlowState
from scitags_core.tag import Tag
from tests.collector.test_observation import NOON, announcement
from tests.netns import packets as p
from tests.netns.conftest import ALICE, BOB, Pair
from tests.netns.namespaces import delete_link

ATLAS, CMS = Tag(2, 15), Tag(3, 14)
IPV6_DSTOPTS = 59
Start = Callable[..., subprocess.Popen[bytes]]
OBSERVE = [sys.executable, "-c", "import sys; from scitags_core.cli import main; sys.exit(main())", "observe"]


def frames() -> list[bytes]:
    datagram = announcement(of=FlowKey.of(p.SRC, 1094, p.DST, 43720))
    udp = struct.pack("!HHHH", 5000, firefly.PORT, 8 + len(datagram), 0) + datagram
    return [
        p.ethernet(p.ipv6(p.tcp(), label=label.encode(*ATLAS, 9))),
        p.ethernet(p.ipv6(exthdr.encode(*CMS, p.TCP) + p.tcp(source=1), p.DESTINATION)),
        p.ethernet(p.ipv6(p.tcp(source=2))),
        p.ethernet(p.ipv6(udp, p.UDP)),
        p.ethernet(bytes(40), p.ARP),
    ]


@pytest.fixture(params=["pcap", "pcapng"])
def capture_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"capture.{request.param}"
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file) if request.param == "pcap" else dpkt.pcapng.Writer(file)
        for number, frame in enumerate(frames()):
            writer.writepkt(frame, ts=1000.0 + number)
    return path


def observed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["observe", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_capture_file_for_programs(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = observed(["--pcap", str(capture_file)], capsys)
    rows = [
        (row["experiment"], row["activity"], row["packets"], row["flows"], row["confirmed"]) for row in found["rows"]
    ]
    assert rows == [
        ("atlas", "Production Input", 1, 1, 1),
        ("cms", "Analysis Input", 1, 1, 0),
        (None, None, 2, 2, 0),
    ]
    assert found["rows"][0]["fireflies"] == {"start": 1, "ongoing": 0, "end": 0}
    assert found["flows"][0]["labels"][0]["label"] == label.encode(*ATLAS, 9)
    assert found["flows"][0]["announced"][0]["experiment"] == "atlas"
    assert found["flows"][1]["header_tags"][0]["activity"] == "Analysis Input"
    assert found["fireflies"][0]["experiment_name"] == "atlas"
    assert found["registry"]["origin"] == "built-in"
    assert found["timeline"]["buckets"][0]["time"] == 1000
    assert found["dropped"] == 0


def test_a_capture_file_for_people(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--pcap", str(capture_file)]) == 0
    text = capsys.readouterr().out
    assert "atlas" in text
    assert "By chance: a random flow label decodes to a listed pair with a probability of 0.35%" in text
    assert "registry of 2025-09-04" in text


def test_the_registry_of_another_date(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = observed(["--pcap", str(capture_file), "--as-of", "2021-09-14"], capsys)
    assert [row["experiment"] for row in found["rows"]] == [None, None]  # atlas had id 16 then
    assert found["fireflies"][0]["experiment_name"] is None


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "no capture file"), (b"x" * 500, "no capture file"), (None, "No such")]
)
def test_a_file_that_is_none_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    path = tmp_path / "bad.pcap"
    if content is not None:
        path.write_bytes(content)
    assert main(["observe", "--pcap", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_of_a_truncated_file_what_is_whole_is_reported(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Into the frame of ARP, and no further.
    capture_file.write_bytes(capture_file.read_bytes()[:-7])
    assert main(["observe", "--json", "--pcap", str(capture_file)]) == 1
    said = capsys.readouterr()
    assert f"{capture_file} is cut short" in said.err
    assert [row["packets"] for row in json.loads(said.out)["rows"]] == [1, 1, 2]


def test_a_capture_out_of_a_pipe(capture_file: Path) -> None:
    observe = [*OBSERVE, "--pcap", "-", "--json"]
    done = subprocess.run(observe, input=capture_file.read_bytes(), capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["packets"] for row in json.loads(done.stdout)["rows"]] == [1, 1, 2]


def test_flows_for_people(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--flows", "--pcap", str(capture_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [atlas] = [line for line in lines if line.startswith("tcp [2001:db8::1]:1094 > [2001:db8::2]:43720")]
    assert re.split("  +", atlas)[3:] == ["atlas/Production Input 100%", "-", "atlas/Production Input"]
    [cms] = [line for line in lines if line.startswith("tcp [2001:db8::1]:1 > ")]
    assert re.split("  +", cms)[3:] == ["-", "cms/Analysis Input 100%", "-"]
    assert not any("[2001:db8::1]:2 >" in line for line in lines)


def test_output_to_a_file(capture_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.txt"
    assert main(["observe", "--pcap", str(capture_file), "--output", str(output)]) == 0
    assert "atlas" in output.read_text()
    assert capsys.readouterr().out == ""


def test_the_table_is_shown_meanwhile_without_a_terminal(
    capture_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["observe", "--live", "1e-9", "--pcap", str(capture_file)]) == 0
    shown = capsys.readouterr().out
    first, _, rest = shown.partition("\n")
    assert re.fullmatch(rf"{capture_file}   20\d\d-\d\d-\d\d [\d:]+ UTC   for 0:00:00   [\d.,]+ Mbit/s", first)
    assert "Mbit/s" in rest.splitlines()[1]
    assert "\x1b" not in shown
    assert "registry of 2025-09-04" in shown


def test_the_table_changes_in_its_place_on_a_terminal(pair: Pair) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
    observe = [*OBSERVE, "--interface", "bob0", "--live", "0.2", "--duration", "1.5"]
    watching = pair.bob.popen(observe, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": ""})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what the terminal says when its other end closes
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert watching.wait(20) == 0, watching.communicate()
    watching.communicate()
    screens = shown.decode().split("\x1b[H")
    assert len(screens) >= 4
    one = screens[2]  # neither the first, which clears all, nor the report
    assert one.endswith("\x1b[J")
    lines = one.split("\r\n")
    assert lines[0].startswith("bob0   20")
    assert max(len(line.removesuffix("\x1b[K")) for line in lines) <= 60
    assert len(lines) <= 12
    assert "By chance" in screens[-1]


def test_lines_while_it_runs(pair: Pair, start: Start, tmp_path: Path) -> None:
    """Each has what is new, together they have all; a flow that was forgotten is still in the others' lines."""
    observer = start("--every", "0.2", "--idle", "0.6", form="--json-lines")
    output = tmp_path / "seen.json"

    def packets() -> list[int]:
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        return [one["packets"] for one in lines if one["src_port"] == 4001]

    def wait_for(counts: list[int]) -> None:
        deadline = time.monotonic() + 10
        while packets() != counts:
            assert time.monotonic() < deadline, packets()
            time.sleep(0.02)

    with pair.alice.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind((ALICE, 4001))
        for count in (3, 2):
            for _ in range(count):
                sender.sendto(b"x" * 100, (BOB, 1094))
            wait_for([3, 2][: 1 if count == 3 else 2])
        time.sleep(1.5)  # forgotten by now
        sender.sendto(b"x" * 100, (BOB, 1094))
        wait_for([3, 2, 1])
        sender.sendto(b"x" * 100, (BOB, 1094))
    time.sleep(0.1)
    observer.terminate()
    assert observer.wait(20) == 0
    assert sum(packets()) == 7
    firsts = [json.loads(line)["first"] for line in output.read_text().splitlines() if '"src_port":4001' in line]
    assert firsts[0] == firsts[1] < firsts[2]


def test_every_is_for_lines(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["observe", "--pcap", str(capture_file), "--every", "1"])
    assert "--every is for --json-lines" in capsys.readouterr().err


def test_fireflies_are_written_as_they_are_seen(
    capture_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fireflies.jsonl"
    assert main(["observe", "--pcap", str(capture_file), "--fireflies", str(path)]) == 0
    [line] = path.read_text().splitlines()
    found = json.loads(line)
    assert found["time"] == "1970-01-01T00:16:43Z"
    assert (found["state"], found["src"], found["src_port"]) == ("start", p.SRC, 1094)
    assert (found["experiment"], found["activity"]) == ("atlas", "Production Input")


@pytest.mark.parametrize(("name", "begins"), [("b.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("b.pdf", b"%PDF")])
def test_a_picture(capture_file: Path, tmp_path: Path, name: str, begins: bytes) -> None:
    path = tmp_path / "new" / name
    assert main(["observe", "--pcap", str(capture_file), "--picture", str(path), "--output", os.devnull]) == 0
    assert path.read_bytes().startswith(begins)
    if name == "b.svg":
        drawn = path.read_text()
        for text in ("Tag in the flow label", "Tag in an extension header", "No tag", "atlas", "Analysis Input"):
            assert text in drawn


def test_a_picture_of_another_kind_is_refused_at_once(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--pcap", str(capture_file), "--picture", "picture.jpg"]) == 1
    assert "picture.jpg: a picture's name ends with one of png, svg, pdf" in capsys.readouterr().err


def test_on_two_interfaces(pair: Pair, start: Start, tmp_path: Path) -> None:
    observer = start("--interface", "lo")
    with pair.bob.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind((BOB, 4001))
        for address in (ALICE, BOB):
            sender.sendto(b"x", (address, 1094))
    time.sleep(0.2)
    observer.terminate()
    assert observer.wait(20) == 0
    flows = json.loads((tmp_path / "seen.json").read_text())["flows"]
    assert {one["dst"] for one in flows if one["key"] and one["key"]["src_port"] == 4001} == {ALICE, BOB}


def test_signals_are_as_they_were(capture_file: Path) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert main(["observe", "--pcap", str(capture_file)]) == 0
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--interface", "x", "--pcap", "y"],
        ["--pcap", "y", "--bucket", "0"],
        ["--interface", "x", "--duration", "-1"],
        ["--interface", "x", "--direction", "up"],
    ],
)
def test_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["observe", *arguments])
    assert caught.value.code == 2


def test_an_unknown_interface_is_named(root: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--interface", "no-such-if", "--duration", "1"]) == 1
    assert "'no-such-if'" in capsys.readouterr().err


@pytest.fixture
def start(pair: Pair, tmp_path: Path) -> Iterator[Start]:
    """Starts an observer on bob's end of the link, which writes seen.json, and returns when it captures."""
    ready = tmp_path / "ready"
    started: list[subprocess.Popen[bytes]] = []

    def start_observer(*more: str, form: str = "--json") -> subprocess.Popen[bytes]:
        arguments = ["--interface", "bob0", form, "--ready", str(ready), "--output", str(tmp_path / "seen.json")]
        process: subprocess.Popen[bytes] = pair.bob.popen([*OBSERVE, *arguments, *more])
        started.append(process)
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None, "the observer ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    yield start_observer
    for process in started:
        process.kill()
        process.wait()


def test_live_on_a_link_with_headers_that_the_kernel_wrote(pair: Pair, start: Start, tmp_path: Path) -> None:
    observer = start()
    with pair.alice.entered():
        tagged, untagged, teller = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(3))
    # The sticky option of a socket: the kernel fills in the next header.
    tagged.setsockopt(socket.IPPROTO_IPV6, IPV6_DSTOPTS, exthdr.encode(*CMS, 0))
    for one, port in ((tagged, 4001), (untagged, 4002)):
        one.bind((ALICE, port))
        for _ in range(10):
            one.sendto(b"x" * 100, (BOB, 1094))
    flow = FlowKey.of(ALICE, 4001, BOB, 1094, "udp")
    event = FlowEvent(state=FlowState.START, key=flow, tag=CMS, start_time=NOON)
    teller.sendto(firefly.encode(event, now=NOON, host="alice", app="test"), (BOB, firefly.PORT))
    for one in (tagged, untagged, teller):
        one.close()
    time.sleep(0.3)
    observer.terminate()
    assert observer.wait(20) == 0
    found = json.loads((tmp_path / "seen.json").read_text())
    cms = next(row for row in found["rows"] if row["experiment"] == "cms")
    assert (cms["packets"], cms["flows"], cms["confirmed"]) == (10, 1, 1)
    # 40 of IPv6, 8 of the option, 8 of UDP
    assert cms["octets"] == 10 * 156
    assert found["dropped"] == 0
    plain = next(one for one in found["flows"] if one["key"] and one["key"]["src_port"] == 4002)
    assert (plain["packets"], plain["header_tags"], plain["announced"]) == (10, [], [])


def test_it_ends_by_itself_after_the_duration(start: Start, tmp_path: Path) -> None:
    observer = start("--duration", "0.5")
    assert observer.wait(20) == 0
    assert json.loads((tmp_path / "seen.json").read_text())["rows"] is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_report(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    observer = start()
    observer.send_signal(number)
    assert observer.wait(20) == 0
    assert json.loads((tmp_path / "seen.json").read_text())["dropped"] == 0


def test_an_interface_that_goes_away_is_1_with_what_was_seen(pair: Pair, start: Start, tmp_path: Path) -> None:
    observer = start()
    with pair.alice.entered(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (BOB, 1094))
    delete_link(pair.bob, "bob0")
    assert observer.wait(20) == 1
    found = json.loads((tmp_path / "seen.json").read_text())
    assert sum(flow["packets"] for flow in found["flows"] if flow["key"]) == 1


def test_without_the_right_to_capture_it_says_so() -> None:
    observe = [*OBSERVE, "--interface", "lo", "--duration", "0.2"]
    if os.geteuid() == 0:
        observe = ["setpriv", "--bounding-set", "-all", *observe]
    done = subprocess.run(observe, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "the right to capture is missing" in done.stderr


# In the namespace: bring the loopback interface up (SIOCSIFFLAGS: up, running), start the observer, and send ten
# packets with a label that an application may lease (IPV6_FLOWLABEL_MGR, IPV6_FLOWINFO_SEND), and a firefly.
ALONE = """
import fcntl, os, pathlib, signal, socket, struct, subprocess, sys, time
value, datagram, ready, *observe = sys.argv[1:]
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", 0x41))
observer = subprocess.Popen(observe)
while not pathlib.Path(ready).exists() and observer.poll() is None:
    time.sleep(0.01)
lease = socket.inet_pton(socket.AF_INET6, "::1") + int(value).to_bytes(4, "big")
sock.setsockopt(socket.IPPROTO_IPV6, 32, lease + struct.pack("BBHHH4x", 0, 1, 1, 60, 60))
sock.setsockopt(socket.IPPROTO_IPV6, 33, 1)
sock.bind(("::1", 4001))
for _ in range(10):
    sock.sendto(b"x" * 100, ("::1", 1094, int(value)))
sock.sendto(bytes.fromhex(datagram), ("::1", 10514))
observer.send_signal(signal.SIGINT)
sys.exit(observer.wait(20))
"""


def test_without_root_in_a_user_namespace(tmp_path: Path) -> None:
    """A user and a network namespace of one's own, for which no privilege is needed: labels and fireflies are read."""
    probe = subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, timeout=30, check=False)
    if probe.returncode:
        pytest.skip("needs user namespaces, which are forbidden here")
    ready = str(tmp_path / "ready")
    datagram = announcement(of=FlowKey.of("::1", 4001, "::1", 1094, "udp")).hex()
    alone = [sys.executable, "-c", ALONE, str(label.encode(*ATLAS, 9)), datagram, ready]
    alone += [*OBSERVE, "--interface", "lo", "--ready", ready, "--json"]
    inside = ["unshare", "--user", "--map-root-user", "--net", *alone]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [atlas] = [row for row in found["rows"] if row["experiment"] == "atlas"]
    assert (atlas["packets"], atlas["octets"], atlas["flows"], atlas["confirmed"]) == (10, 1480, 1, 1)
    assert atlas["fireflies"] == {"start": 1, "ongoing": 0, "end": 0}
    assert found["dropped"] == 0
