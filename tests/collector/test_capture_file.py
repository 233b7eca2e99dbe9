"""Capture files as tcpdump, dumpcap and others write them, whole, damaged, and whatever hypothesis thinks of."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_collector import pcap, pcapng
from scitags_collector.capture import CaptureFile, read_pcap
from scitags_collector.pcap import DamagedFile, Source
from tests.netns import packets as p

IP = p.ipv6(p.tcp(), label=196664)
FRAME = p.ethernet(IP)
AT = 1_767_225_600_123_456_789
SECONDS, NANOSECONDS = divmod(AT, 10**9)

Seen = list[tuple[int, int, bytes, int]]


class Drops(io.BytesIO):
    """A pipe from which little comes at a time."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(7)


def seen_in(content: bytes, how: type[io.BytesIO] = io.BytesIO) -> tuple[Seen, Source]:
    """The frames: time, octets before the IP packet, what was captured, length on the wire."""
    source = Source(how(content), "capture")
    module: ModuleType = pcapng if source.peek(4) == pcapng.SECTION_START else pcap
    found = [
        (time_ns, link.head - 44, buffer[at : at + captured], wire)
        for time_ns, link, buffer, at, captured, wire in module.frames(source)
    ]
    return found, source


def record(order: str, units: int, frame: bytes, wire: int) -> bytes:
    return struct.pack(f"{order}IIII", SECONDS, units, len(frame), wire) + frame


def pcap_file(order: str, magic: int, *records: bytes, link_type: int = 1) -> bytes:
    return struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, 262144, link_type) + b"".join(records)


MICRO, NANO = 0xA1B2C3D4, 0xA1B23C4D


@pytest.mark.parametrize("how", [io.BytesIO, Drops])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "units", "time_ns"), [(MICRO, 123456, AT - 789), (NANO, 123456789, AT)])
def test_pcap(order: str, magic: int, units: int, time_ns: int, how: type[io.BytesIO]) -> None:
    content = pcap_file(order, magic, record(order, units, FRAME, 9000), record(order, units, FRAME[:60], 70))
    assert seen_in(content, how)[0] == [(time_ns, 14, FRAME, 9000), (time_ns, 14, FRAME[:60], 70)]


def test_pcap_of_another_link_type() -> None:
    content = pcap_file("<", MICRO, record("<", 0, IP, len(IP)), link_type=101 | 0x1000_0000)
    assert seen_in(content)[0] == [(SECONDS * 10**9, 0, IP, len(IP))]


# --- pcapng -------------------------------------------------------------------------------------


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}II", kind, 12 + len(body)) + body + struct.pack(f"{order}I", 12 + len(body))


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(order: str, link_type: int = 1, options: bytes = b"", snap: int = 0) -> bytes:
    return block(order, 1, struct.pack(f"{order}HHI", link_type, 0, snap) + options)


def packet(order: str, which: int, units: int, frame: bytes, wire: int) -> bytes:
    body = struct.pack(f"{order}IIIII", which, units >> 32, units & 0xFFFFFFFF, len(frame), wire)
    return block(order, 6, body + frame)


@pytest.mark.parametrize("how", [io.BytesIO, Drops])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_with_several_interfaces_and_sections(order: str, how: type[io.BytesIO]) -> None:
    nano = option(order, 2, b"eth0\0") + option(order, 9, b"\x09") + option(order, 0, b"")
    binary = option(order, 9, b"\x94") + option(order, 14, struct.pack(f"{order}q", 1000))  # 2^-20 s, from second 1000
    other = "<" if order == ">" else ">"
    content = b"".join(
        [
            section(order),
            interface(order),
            interface(order, 101, nano),
            packet(order, 0, AT // 1000, FRAME, 5000),
            block(order, 4, b"names"),
            packet(order, 1, AT, IP, len(IP)),
            section(other),
            interface(other, 113, binary.replace(struct.pack(f"{order}HH", 9, 1), struct.pack(f"{other}HH", 9, 1))
                      .replace(struct.pack(f"{order}HHq", 14, 8, 1000), struct.pack(f"{other}HHq", 14, 8, 1000))),
            packet(other, 0, 3 << 19, bytes(16) + IP, 90),
        ]
    )  # fmt: skip
    assert seen_in(content, how)[0] == [
        (AT - 789, 14, FRAME, 5000),
        (AT, 0, IP, len(IP)),
        (1_001_500_000_000, 16, bytes(16) + IP, 90),
    ]


def test_pcapng_blocks_of_other_kinds() -> None:
    old = struct.pack("<HHIIII", 0, 0, 0, 5, len(FRAME), len(FRAME)) + FRAME
    simple = struct.pack("<I", 1000) + FRAME[:64]
    content = section("<") + interface("<", snap=64) + block("<", 2, old) + block("<", 3, simple)
    assert seen_in(content)[0] == [(5000, 14, FRAME, len(FRAME)), (0, 14, FRAME[:64], 1000)]


def test_frames_of_unknown_link_types_are_left_out_and_counted() -> None:
    content = section("<") + interface("<", 147) + interface("<") + packet("<", 0, 0, b"x", 1) * 2
    found, source = seen_in(content + packet("<", 1, 0, FRAME, 80))
    assert found == [(0, 14, FRAME, 80)]
    assert source.left_out == {147: 2}


def test_what_the_capturing_host_lost() -> None:
    def statistics(which: int, by_interface: int, by_system: int) -> bytes:
        counts = option("<", 5, struct.pack("<Q", by_interface)) + option("<", 7, struct.pack("<Q", by_system))
        return block("<", 5, struct.pack("<III", which, 0, 0) + counts)

    content = section("<") + interface("<") * 2 + statistics(0, 1, 1) + statistics(0, 3, 4) + statistics(1, 10, 0)
    assert sum(seen_in(content)[1].losses.values()) == 17


# --- damage -------------------------------------------------------------------------------------

WHOLE_PCAP = pcap_file("<", MICRO, record("<", 0, FRAME, 80), record("<", 1, FRAME, 80))
WHOLE_PCAPNG = section("<") + interface("<") + packet("<", 0, 0, FRAME, 80) + packet("<", 0, 1, FRAME, 80)


def seen_before_the_damage(content: bytes) -> tuple[Seen, str]:
    """The frames, and what was wrong then."""
    source = Source(io.BytesIO(content), "capture")
    module: ModuleType = pcapng if source.peek(4) == pcapng.SECTION_START else pcap
    found: Seen = []
    try:
        for time_ns, link, buffer, at, captured, wire in module.frames(source):
            found.append((time_ns, link.head - 44, buffer[at : at + captured], wire))
    except DamagedFile as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize(
    ("start", "one"),
    [
        (pcap_file("<", MICRO), record("<", 5, FRAME, 80)),
        (section("<") + interface("<"), packet("<", 0, 5, FRAME, 80)),
    ],
    ids=["pcap", "pcapng"],
)
def test_every_truncation_keeps_what_was_before_it(start: bytes, one: bytes) -> None:
    whole = start + one + one
    complete, _ = seen_in(whole)
    assert len(complete) == 2
    for length in range(len(start), len(whole) + 1):
        found, wrong = seen_before_the_damage(whole[:length])
        full, rest = divmod(length - len(start), len(one))
        assert found == complete[:full]
        assert wrong == ("capture is cut short: what was last written is not whole" if rest else "")
    for length in range(len(start)):
        assert seen_before_the_damage(whole[:length])[0] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no capture file"),
        (b"x" * 500, "no capture file"),
        (pcapng.SECTION_START + bytes(100), "its byte order is 00000000"),
        (pcap_file("<", MICRO, link_type=147), "link type 147 is not known"),
        (pcap_file("<", MICRO, struct.pack("<IIII", 0, 0, 1 << 30, 60)), "claims to be of 1073741840 octets"),
        (section("<") + struct.pack("<III", 6, 13, 0), "a block of 13 octets"),
        (section("<") + struct.pack("<III", 6, 0, 0), "a block of 0 octets"),
        (section("<") + packet("<", 0, 0, FRAME, 80), "a block of type 6 in it makes no sense"),
        (section("<") + interface("<") + block("<", 6, bytes(12) + struct.pack("<II", 99, 99)), "makes no sense"),
        (section("<") + interface("<", options=option("<", 9, b"\x7f")), "a block of type 1 in it makes no sense"),
    ],
)
def test_damage_is_named(content: bytes, said: str) -> None:
    with pytest.raises(DamagedFile, match=said):
        seen_in(content)


@given(st.sampled_from([WHOLE_PCAP, WHOLE_PCAPNG]), st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=8))))
def test_no_octets_make_it_fail_in_another_way(whole: bytes, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(whole)
    for at, octets in changes:
        content[at : at + len(octets)] = octets
    try:
        found, _ = seen_in(bytes(content))
    except DamagedFile:
        return
    assert all(len(captured) <= len(content) for _, _, captured, _ in found)


# --- files by others ----------------------------------------------------------------------------


@pytest.fixture(params=["pcap", "pcap-nano", "pcapng"])
def file_by_dpkt(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"capture.{request.param}"
    with path.open("wb") as file:
        if request.param == "pcapng":
            writer = dpkt.pcapng.Writer(file)
        else:
            writer = dpkt.pcap.Writer(file, nano=request.param == "pcap-nano")
        for number in range(3):
            writer.writepkt(FRAME, ts=1000.5 + number)
    return path


def test_what_dpkt_writes(file_by_dpkt: Path) -> None:
    found = list(read_pcap(file_by_dpkt))
    assert [time_ns for time_ns, _ in found] == [1_000_500_000_000 + n * 10**9 for n in range(3)]
    assert {packet.label for _, packet in found} == {196664}


@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "pcapng"])
def test_what_wireshark_writes(tmp_path: Path, kind: str) -> None:
    editcap = shutil.which("editcap")
    if editcap is None:
        pytest.skip("needs editcap (Debian: wireshark-common)")
    plain, converted = tmp_path / "plain.pcap", tmp_path / "converted"
    plain.write_bytes(pcap_file("<", NANO, record("<", NANOSECONDS, FRAME, 9000)))
    subprocess.run([editcap, "-F", kind, plain, converted], check=True, timeout=30)
    [(time_ns, packet)] = read_pcap(converted)
    assert time_ns == (AT - 789 if kind == "pcap" else AT)
    assert packet.octets == len(IP)


def test_reading_stops_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "long.pcap"
    path.write_bytes(pcap_file("<", MICRO, *[record("<", 0, FRAME, 80)] * 50_000))

    def answers() -> Iterator[bool]:
        yield True
        while True:
            yield False

    answer = answers()
    seen = sum(1 for _ in CaptureFile(path).frames(lambda: next(answer)))
    assert 0 < seen < 50_000
