"""The marker's program as BCC compiles it: the same source, the same octets out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scitags_agent.bpf.libbpf import MarkerUnavailable
from scitags_agent.bpf.loader import MarkerProgram
from scitags_core import label
from tests.netns import packets as p
from tests.netns.conftest import Pair
from tests.netns.crowds import frame, without_a_place
from tests.netns.test_marker_clones import Tap, labels, marking, send
from tests.netns.test_marker_program import COUNTED, LABEL, LEFT_ALONE, MARKED, PASS_ON, TCP_FLOW, UDP_FLOW, labelled


def headers() -> dict[str, str]:
    """Where BCC finds a kernel's headers: the running one's, else those that Debian has for its own."""
    if Path("/lib/modules", os.uname().release, "build").exists():
        return {}
    builds = sorted(Path("/usr/src").glob("linux-headers-*-amd64")) + sorted(
        Path("/usr/src").glob("linux-headers-*-arm64")
    )
    if not builds:
        pytest.skip("needs the headers of a kernel (Debian: linux-headers-amd64)")
    build = builds[-1]
    return {
        "BCC_KERNEL_SOURCE": str(build.with_name(build.name.rpartition("-")[0] + "-common")),
        "SCITAGS_KERNEL_BUILD": str(build),
    }


@pytest.fixture(scope="module")
def by_bcc(bpf: None) -> Iterator[MarkerProgram]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in headers().items():
            patch.setenv(name, value)
        try:
            program = MarkerProgram(64, loader="bcc")
        except MarkerUnavailable as error:
            if "is missing" in str(error):
                pytest.skip(str(error))
            raise
    assert program.loader == "bcc"
    yield program
    program.close()


@pytest.fixture
def marking_by_bcc(by_bcc: MarkerProgram) -> Iterator[MarkerProgram]:
    for flow in (TCP_FLOW, UDP_FLOW):
        by_bcc.set(flow, LABEL)
    yield by_bcc
    for flow in (TCP_FLOW, UDP_FLOW):
        by_bcc.unset(flow)


def counted(program: MarkerProgram, packet: bytes) -> tuple[bytes, set[str]]:
    """The packet afterwards, and which counters moved."""
    before = program.outcomes()
    run = program.test_run(packet)
    assert run.verdict == PASS_ON
    after = program.outcomes()
    return run.packet, {name for name in after if after[name] != before[name]}


@pytest.mark.parametrize("name", MARKED)
def test_known_flows_are_labelled(marking_by_bcc: MarkerProgram, name: str) -> None:
    packet, at = MARKED[name]
    assert counted(marking_by_bcc, packet) == (labelled(packet, at), {"marked"})


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_everything_else_is_left_alone(marking_by_bcc: MarkerProgram, name: str) -> None:
    assert counted(marking_by_bcc, LEFT_ALONE[name]) == (LEFT_ALONE[name], set())


@pytest.mark.parametrize("name", COUNTED)
def test_what_cannot_be_told_is_counted_by_reason(marking_by_bcc: MarkerProgram, name: str) -> None:
    reason, packet = COUNTED[name]
    assert counted(marking_by_bcc, packet) == (packet, {reason})


def test_flows_without_a_place_in_the_table(by_bcc: MarkerProgram) -> None:
    residents, homeless = without_a_place()
    crowd = [*residents, homeless]
    for number, flow in enumerate(crowd):
        by_bcc.set(flow, label.encode(2, number))
    assert by_bcc.in_map == 1
    for number, flow in enumerate(crowd):
        assert int.from_bytes(by_bcc.test_run(frame(flow)).packet[14:18], "big") & 0xFFFFF == label.encode(2, number)
        by_bcc.unset(flow)
    assert len(by_bcc) == 0


def test_its_other_programs_load(by_bcc: MarkerProgram) -> None:
    assert by_bcc.object.program_fd("scitags_label_all") >= 0
    assert by_bcc.object.program_fd("scitags_label_all_l3") >= 0


def test_every_packet_of_a_transfer(pair: Pair, by_bcc: MarkerProgram) -> None:
    wire = Tap(pair.bob, "bob0")
    with marking(pair.alice, "alice0", by_bcc):
        send(pair)
    arrived = wire.frames()
    wire.close()
    assert {*labels(arrived, p.TCP), *labels(arrived, p.UDP)} == {LABEL}


def test_without_headers_it_says_what_the_compiler_said(
    bpf: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    with pytest.raises(MarkerUnavailable, match=r"BCC cannot load the program: .+"):
        MarkerProgram(64, loader="bcc")
