"""The named pipe, with a real agent at its end."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_agent.sources.named_pipe import MAX_LINE, LineBuffer, NamedPipe, NamedPipeSettings, rescued
from scitags_core import firefly, firefly_schema
from scitags_core.errors import ConfigError
from scitags_core.flow import FlowState
from scitags_core.tag import Tag
from tests.agent.conftest import Agent, Collector, wait_for
from tests.sink import Sink

STORM_START = b"start tcp [fd00:1:0:0:0:0:0:1] 8085 [fd00:1:0:0:0:0:0:2] 43720 2 15\n"
STORM_END = STORM_START.replace(b"start", b"end")


def write(path: Path, octets: bytes) -> None:
    with path.open("wb", buffering=0) as pipe:
        assert pipe.write(octets) == len(octets)


def test_lines_of_the_real_storm_are_announced(agent: Agent, collector: Collector) -> None:
    write(agent.pipe, STORM_START + STORM_END)
    started, ended = collector.events(2)
    assert (started.state, ended.state) == (FlowState.START, FlowState.END)
    assert started.tag == Tag(2, 15)
    assert (started.key.src, started.key.dst) == ("fd00:1::1", "fd00:1::2")
    assert ended.start_time == started.start_time
    assert [firefly_schema.problems(datagram) for datagram in collector.datagrams] == [[], []]


def test_a_line_in_two_writes_and_two_writers_at_once(agent: Agent, collector: Collector) -> None:
    with agent.pipe.open("wb", buffering=0) as one, agent.pipe.open("wb", buffering=0) as other:
        one.write(STORM_START[:20])
        wait_for(lambda: agent.status() is not None)
        one.write(STORM_START[20:])
        other.write(STORM_END)
    assert [event.state for event in collector.events(2)] == [FlowState.START, FlowState.END]
    # The writers are gone; the next one is heard.
    write(agent.pipe, STORM_START)
    collector.events(3)


WRITER = """
import os, sys
path, number, count, bulk = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
descriptor = os.open(path, os.O_WRONLY)
pending = b""
for flow in range(count // 2):
    for state in (b"start", b"end"):
        line = b"%s tcp [fd00:1:0:0:0:0:%x:1] 8085 [fd00:1:0:0:0:0:%x:2] %d 2 15\\n" % (
            state, number, flow // 60000, 1 + flow % 60000)
        if len(pending) + len(line) > bulk:
            assert os.write(descriptor, pending) == len(pending)
            pending = b""
        pending += line
assert os.write(descriptor, pending) == len(pending)
"""


@pytest.mark.parametrize(("writers", "bulk"), [(1, 1), (4, 1), (1, 4096), (4, 4096)])
def test_100_000_events_at_full_speed_are_all_announced(
    agent: Agent, collector: Collector, writers: int, bulk: int
) -> None:
    """Single writes (bulk 1) and writes of up to 4096 octets, which the kernel keeps whole."""
    count = 100_000 // writers
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, agent.pipe, str(number), str(count), str(bulk)])
        for number in range(writers)
    ]
    for process in processes:
        assert process.wait(120) == 0
    collector.wait(100_000, 120)
    status = agent.status()
    assert status["sources"]["named_pipe"] == {"accepted": 100_000}
    assert status["table"] == {"flows": 0, "transfers": 0, "started": 50_000, "ended": 50_000}
    events = [firefly.decode(datagram).event for datagram in collector.datagrams]
    seen = Counter((event.state, event.key) for event in events)
    assert len(seen) == 100_000
    assert set(seen.values()) == {1}
    # Every firefly meets the schema; the rules are those that tests/core holds against the published one.
    assert [bad for bad in map(firefly_schema.problems, collector.datagrams) if bad] == []


def test_bad_lines_are_refused_by_name_and_cost_no_other(agent: Agent, collector: Collector) -> None:
    write(agent.pipe, b"start tcp 2001:db8::1 1094 2001:db8::2 70000 2 15\n" + b"nonsense\n" + STORM_START)
    assert collector.events(1)[0].tag == Tag(2, 15)
    assert agent.status()["sources"]["named_pipe"] == {"accepted": 1, "refused": 2}
    assert "port 70000 is outside 0..65535" in agent.log.read_text()


def test_a_pipe_that_is_deleted_or_replaced_by_a_file_is_put_back(agent: Agent, collector: Collector) -> None:
    agent.pipe.unlink()
    wait_for(agent.pipe.exists, what="a new pipe")
    write(agent.pipe, STORM_START)
    collector.events(1)
    agent.pipe.unlink()
    agent.pipe.write_bytes(STORM_END)  # what StoRM does when it finds no pipe
    wait_for(agent.pipe.is_fifo, what="a pipe in the file's place")
    assert collector.events(2)[1].state is FlowState.END
    write(agent.pipe, STORM_START)
    collector.events(3)


def test_a_link_is_followed_to_wherever_it_leads_at_the_time(make_agent: Callable[..., Agent], tmp_path: Path) -> None:
    link, one, other = (tmp_path / name for name in ("link", "one", "other"))
    link.symlink_to(one)
    agent = make_agent(
        f'[[backend]]\nkind = "firefly"\nto_destination = false\n'
        f'[[source]]\nkind = "named_pipe"\nname = "own"\npath = "{link}"\n'
    )
    wait_for(one.is_fifo)
    other.touch()
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").replace(link)
    wait_for(lambda: other.is_fifo() and not one.exists(), what="the pipe where the link leads now")
    # With the link gone, a writer makes a file in its place.
    (tmp_path / "file").write_bytes(STORM_START)
    (tmp_path / "file").replace(link)
    wait_for(lambda: link.is_fifo() and not other.exists(), what="the pipe in the file's place")
    wait_for(lambda: agent.accepted("own") == 1, what="the event in the file")
    assert agent.stop() == 0
    assert not link.exists()


def test_a_file_whose_lines_were_written_over_each_other_is_replaced_too(agent: Agent, collector: Collector) -> None:
    """StoRM 1.8.1 writes from the beginning of the file each time, and cuts nothing off."""
    agent.pipe.unlink()
    wait_for(agent.pipe.is_fifo, what="a new pipe")
    made = agent.pipe.with_name("made")
    made.write_bytes(b"end tcp [fd00:5:0:0:0:0:0:1] 8085 [fd00:5:0:0:0:0:0:2] 34722 2 15\n:2] 40772 2 15\n5\n")
    made.replace(agent.pipe)
    wait_for(agent.pipe.is_fifo, what="a pipe in the file's place")
    write(agent.pipe, STORM_START)
    assert [one.state for one in collector.events(1)] == [FlowState.START]


def test_the_pipe_goes_when_the_agent_stops_and_comes_with_the_mode_asked_for(
    make_agent: Callable[..., Agent], collector: Collector, tmp_path: Path
) -> None:
    pipe = tmp_path / "own"
    backend = f'[[backend]]\nkind = "firefly"\nto_destination = false\ncollectors = ["[::1]:{collector.port}"]\n'
    agent = make_agent(f'{backend}[[source]]\nkind = "named_pipe"\nname = "own"\npath = "{pipe}"\nmode = "0622"\n')
    wait_for(pipe.exists)
    assert stat.S_IMODE(pipe.stat().st_mode) == 0o622
    assert agent.stop() == 0
    assert not pipe.exists()
    assert not agent.pipe.exists()
    assert not agent.socket.exists()


def test_a_pipe_that_was_there_before_stays(make_agent: Callable[..., Agent], collector: Collector) -> None:
    agent = make_agent(f'[[backend]]\nkind = "firefly"\ncollectors = ["[::1]:{collector.port}"]\n', started=False)
    os.mkfifo(agent.pipe)
    agent.start()
    assert agent.stop() == 0
    assert agent.pipe.exists()


@pytest.mark.parametrize("content", [b"root:x:0:0:root:/root:/bin/sh\n", b"2024 12:30\n1 2 3\n", STORM_END + b"mine\n"])
def test_a_file_that_holds_something_else_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    pipe = NamedPipe(NamedPipeSettings(path=str(path)))
    with pytest.raises(ConfigError, match="not of flow events"):
        asyncio.run(pipe.run(Sink()))
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", ["rw", "9", "01777", "0x1ff"])
def test_a_mode_must_be_octal(mode: str) -> None:
    with pytest.raises(ConfigError, match="is not an octal file mode"):
        NamedPipe(NamedPipeSettings(mode=mode))


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no group 'no-such-group'"):
        NamedPipe(NamedPipeSettings(group="no-such-group"))


LINES = st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), max_size=20)


@given(LINES, st.lists(st.integers(0, 700), max_size=12))
def test_lines_come_whole_however_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    octets = b"".join(line + b"\n" for line in lines)
    buffer = LineBuffer()
    found: list[bytes] = []
    before = 0
    for cut in [*sorted(cuts), len(octets)]:
        found += buffer.feed(octets[before:cut])
        before = max(before, cut)
    assert found == lines


def test_a_line_without_end_is_cut_and_the_next_is_whole() -> None:
    buffer = LineBuffer()
    found = []
    for _ in range(10):
        found += buffer.feed(b"x" * 1000)
    found += buffer.feed(b"tail\nnext\n")
    assert found == [b"x" * MAX_LINE, b"next"]


def test_the_event_after_the_torn_line_of_a_dead_writer_is_kept() -> None:
    assert [event.state for event in rescued(STORM_START[:30] + STORM_END.rstrip())] == [FlowState.END]
