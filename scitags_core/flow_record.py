"""What happened to a flow as a flat object: how every record of ours begins, whatever else it says. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

import msgspec

from scitags_core.flow import FlowEvent, Transport
from scitags_core.registry import Names


class FlowRecord(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The members that all have, in this order.

    time    when it was written down or seen; left out where nobody knows
    experiment, activity   the registry's names; None for what it does not list
    """

    time: datetime | msgspec.UnsetType
    state: str
    protocol: Transport
    src: str
    src_port: int
    dst: str
    dst_port: int
    experiment_id: int
    activity_id: int
    experiment: str | None
    activity: str | None

    @classmethod
    def of(cls, time: datetime | msgspec.UnsetType, event: FlowEvent, names: Names, *rest: Any) -> Self:
        """The record of an event; rest are the members that this kind of record has besides, in their order."""
        key, tag = event.key, event.tag
        return cls(
            time,
            event.state.value,
            key.protocol,
            key.src,
            key.src_port,
            key.dst,
            key.dst_port,
            tag.experiment,
            tag.activity,
            names.experiment,
            names.activity,
            *rest,
        )
