"""`scitags observe` as a user runs it: on files, and live on a real link."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
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

ATLAS, CMS = Tag(2, 15), Tag(3, 14)
IPV6_DSTOPTS = 59


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


def test_a_truncated_file_is_1(capture_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture_file.write_bytes(capture_file.read_bytes()[:-7])
    status = main(["observe", "--pcap", str(capture_file)])
    said = capsys.readouterr()
    assert status in (0, 1)
    assert status == 1 or "atlas" in said.out


@pytest.mark.parametrize("arguments", [[], ["--interface", "x", "--pcap", "y"], ["--pcap", "y", "--bucket", "0"]])
def test_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["observe", *arguments])
    assert caught.value.code == 2


def test_an_unknown_interface_is_named(root: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--interface", "no-such-if", "--duration", "1"]) == 1
    assert "'no-such-if'" in capsys.readouterr().err


def start_observer(pair: Pair, directory: Path, *more: str) -> subprocess.Popen[bytes]:
    ready = directory / "ready"
    process: subprocess.Popen[bytes] = pair.bob.popen(
        [
            sys.executable, "-c", "import sys; from scitags_core.cli import main; sys.exit(main())", "observe",
            "--interface", "bob0", "--json", "--ready", str(ready), "--output", str(directory / "seen.json"), *more,
        ]
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert process.poll() is None, "the observer ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_live_on_a_link_with_headers_that_the_kernel_wrote(pair: Pair, tmp_path: Path) -> None:
    observer = start_observer(pair, tmp_path)
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


def test_it_ends_by_itself_after_the_duration(pair: Pair, tmp_path: Path) -> None:
    observer = start_observer(pair, tmp_path, "--duration", "0.5")
    assert observer.wait(20) == 0
    assert json.loads((tmp_path / "seen.json").read_text())["rows"] is not None


def test_without_the_right_to_capture_it_says_so(tmp_path: Path) -> None:
    observe = "import sys; from scitags_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", observe, "observe", "--interface", "lo", "--duration", "0.2"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "the right to capture is missing" in done.stderr


def test_a_user_namespace_of_ones_own_is_enough(tmp_path: Path) -> None:
    observe = "import sys; from scitags_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", observe, "observe", "--interface", "lo", "--duration", "0.2", "--json"]
    if subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("needs user namespaces, which are forbidden here")
    inside = ["unshare", "--user", "--map-root-user", "--net", *command]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == []
