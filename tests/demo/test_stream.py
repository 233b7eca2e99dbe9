"""Several files on one connection: what is counted is what was sent, however it is cut."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scitags_demo.errors import DemoError
from scitags_demo.stream import FRAME, MAX_CHUNK, Deframer, Stream

DATA_OCTETS = 3 * MAX_CHUNK
FAST = 1e9


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=20),
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
)
def test_frames_are_counted_wherever_they_are_cut(frames: list[tuple[int, int]], cuts: list[int]) -> None:
    octets = b"".join(FRAME.pack(number, length) + bytes(length) for number, length in frames)
    deframer = Deframer()
    position = 0
    while position < len(octets):
        for cut in cuts:
            deframer.feed(octets[position : position + cut])
            position += cut
    for number in range(6):
        assert deframer.octets[number] == sum(length for one, length in frames if one == number)
    assert deframer.complete == {number for number, length in frames if length == 0}


@pytest.fixture
def streams() -> Iterator[tuple[Stream, Stream]]:
    with tempfile.TemporaryFile() as data, socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        data.write(bytes(DATA_OCTETS))
        data.flush()
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        both = Stream(client, data.fileno(), DATA_OCTETS), Stream(server, data.fileno(), DATA_OCTETS)
        yield both
        for one in both:
            one.close(5)


def test_files_at_once(streams: tuple[Stream, Stream]) -> None:
    supplier, receiver = streams
    sizes = {1: 1_000_000, 2: 30_000, 3: 1}
    senders = [threading.Thread(target=supplier.send, args=(number, size, FAST)) for number, size in sizes.items()]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(10)
    assert {number: receiver.receive(number, 5) for number in sizes} == sizes


def test_nothing_is_sent_while_held(streams: tuple[Stream, Stream]) -> None:
    supplier, receiver = streams
    sender = threading.Thread(target=supplier.send, args=(1, 2_000_000, 4e6))
    sender.start()
    held_at = supplier.hold()
    sender.join(0.1)
    assert sender.is_alive()
    assert supplier.written == held_at
    supplier.resume()
    sender.join(10)
    assert receiver.receive(1, 5) == 2_000_000


def test_a_pace_is_kept(streams: tuple[Stream, Stream]) -> None:
    supplier, receiver = streams
    began = time.monotonic()
    supplier.send(1, 100_000, 400_000)
    assert 0.2 < time.monotonic() - began < 2
    assert receiver.receive(1, 5) == 100_000


def test_closing_counts_octets_and_segments(streams: tuple[Stream, Stream]) -> None:
    supplier, receiver = streams
    supplier.send(1, 10_000, FAST)
    octets, again, segments = supplier.close(5)
    assert octets == 10_000 + 8 * -(-10_000 // MAX_CHUNK) + 8
    assert again == 0
    assert segments >= 3
    assert receiver.close(5)[0] == 0


def test_a_broken_connection_ends_the_wait(streams: tuple[Stream, Stream]) -> None:
    supplier, receiver = streams
    supplier.close(5)
    with pytest.raises(DemoError, match="file 1 is not complete: 0 octets have come"):
        receiver.receive(1, 5)
