"""The codecs: fireflies beside the bare JSON work that nobody can avoid, labels beside an empty loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from bench.measure import interleaved, show
from scitags_core import firefly, label
from scitags_core.flow import FlowEvent, FlowKey, FlowState, Usage
from scitags_core.tag import Tag

COUNT = 5000
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def end_event() -> FlowEvent:
    return FlowEvent(
        state=FlowState.END,
        key=FlowKey.of("2001:db8::1", 1094, "2001:db8::2", 43720),
        tag=Tag(2, 15),
        start_time=NOON,
        end_time=NOON,
        application="storage 1.0",
        usage=Usage(received=0, sent=1 << 30),
    )


def repeated(once: Callable[[], object]) -> Callable[[], int]:
    def case() -> int:
        for _ in range(COUNT):
            once()
        return COUNT

    return case


def main() -> None:
    event = end_event()
    datagram = firefly.encode(event, now=NOON, host="storage.example", app="bench")
    body = datagram[datagram.index(b"{") :]
    message = msgspec.json.decode(body)
    show(
        "reading a firefly",
        "messages",
        interleaved(
            {
                "the standard library's json.loads of it": repeated(lambda: json.loads(body)),
                "msgspec's JSON decoder alone": repeated(lambda: msgspec.json.decode(body)),
                "scitags_core.firefly.decode, header and checks": repeated(lambda: firefly.decode(datagram)),
            }
        ),
    )
    show(
        "writing a firefly",
        "messages",
        interleaved(
            {
                "the standard library's json.dumps of it": repeated(lambda: json.dumps(message)),
                "scitags_core.firefly.encode, header and checks": repeated(
                    lambda: firefly.encode(event, now=NOON, host="storage.example", app="bench")
                ),
            }
        ),
    )
    show(
        "flow labels",
        "labels",
        interleaved(
            {
                "a call that does nothing": repeated(lambda: None),
                "scitags_core.label.encode": repeated(lambda: label.encode(2, 15, 7)),
                "scitags_core.label.decode": repeated(lambda: label.decode(196664)),
            }
        ),
    )
