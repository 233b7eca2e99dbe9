"""An observation as flat records, for whatever reads JSON lines or Parquet: docs/observe.md describes the members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from scitags_collector.flows import Flow, Strand
from scitags_collector.observation import NANOSECONDS, Observation
from scitags_core.cli.output import json_line
from scitags_core.errors import ScitagsError

ROWS_AT_ONCE = 50_000
FORGETTINGS = 4  # in the time after which a flow is idle: each takes a moment with very many flows


class ParquetUnavailable(ScitagsError):
    """The library is missing, or the file cannot be written; the message says which."""


def records(observation: Observation) -> Iterator[dict[str, Any]]:
    """One for each flow and what its packets bear: packets that differ in label, header or class are in several."""
    for flow in observation.flows():
        announced = [list(tag) for tag in sorted(observation.announced(flow))]
        for strand in flow.strands:
            yield _record(observation, flow, strand, announced)


def _record(observation: Observation, flow: Flow, strand: Strand, announced: list[list[int]]) -> dict[str, Any]:
    source, destination = flow.addresses
    ports = flow.tuple5[1]
    tag, header = strand.tag, strand.header_tag
    called = observation.registry.names(tag) if tag else None
    return {
        "first": flow.first / NANOSECONDS,
        "last": strand.last / NANOSECONDS,
        "ip_version": flow.version,
        "src": source,
        "src_port": int.from_bytes(ports[:2], "big") if ports else None,
        "dst": destination,
        "dst_port": int.from_bytes(ports[2:], "big") if ports else None,
        "ip_protocol": flow.protocol,
        "traffic_class": strand.traffic_class,
        "label": strand.label if flow.version == 6 else None,  # noqa: PLR2004
        "label_untold": strand.label is None,
        "header_experiment_id": header.experiment if header else None,
        "header_activity_id": header.activity if header else None,
        "tag_from": strand.carrier,
        "experiment_id": tag.experiment if tag else None,
        "activity_id": tag.activity if tag else None,
        "experiment": called.experiment if called else None,
        "activity": called.activity if called else None,
        "announced": announced,
        "packets": strand.packets,
        "octets": strand.octets,
    }


class RecordWriter:
    """Writes records as lines of JSON, once at the end or again and again: then each has what is new since the last."""

    def __init__(self, observation: Observation, file: TextIO, *, idle_seconds: float | None = None) -> None:
        """Flows of which nothing was seen for idle_seconds are forgotten once they are written; None: no flow is."""
        self._observation = observation
        self._file = file
        self._idle = None if idle_seconds is None else round(idle_seconds * NANOSECONDS)
        self._next_forgetting = 0

    def write(self, now: int) -> None:
        """Write what is new at this time, nanoseconds since 1970."""
        observation = self._observation
        for flow in observation.flows():
            announced: list[list[int]] | None = None
            for strand in flow.strands:
                packets, octets = strand.told
                if strand.packets == packets and strand.octets == octets:
                    continue
                if announced is None:
                    announced = [list(tag) for tag in sorted(observation.announced(flow))]
                record = _record(observation, flow, strand, announced)
                record |= {"packets": strand.packets - packets, "octets": strand.octets - octets}
                self._file.write(json_line(record) + "\n")
                strand.told = strand.packets, strand.octets
        self._file.flush()
        if self._idle is not None and now >= self._next_forgetting:
            observation.forget(now - self._idle)
            self._next_forgetting = now + self._idle // FORGETTINGS


def load_parquet() -> tuple[Any, Any]:
    """pyarrow and its module for Parquet. Raises ParquetUnavailable."""
    try:
        import pyarrow  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise ParquetUnavailable(f"--parquet needs pyarrow: pip install 'scitags-suite[collector]' ({error})") from None
    return pyarrow, parquet


def write_parquet(observation: Observation, path: Path) -> None:
    """A Parquet file of the records, times as timestamps. Raises ParquetUnavailable."""
    pyarrow, parquet = load_parquet()
    schema = _schema(pyarrow)
    try:
        with parquet.ParquetWriter(path, schema) as writer:
            for some in _some_at_once(map(_with_microseconds, records(observation))):
                writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
    except OSError as error:
        raise ParquetUnavailable(f"{path}: {error.strerror or error}") from None


def _with_microseconds(record: dict[str, Any]) -> dict[str, Any]:
    return record | {name: round(record[name] * 1_000_000) for name in ("first", "last")}


def _some_at_once(of: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    for record in of:
        some.append(record)
        if len(some) == ROWS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _schema(arrow: Any) -> Any:
    moment = arrow.timestamp("us", tz="UTC")
    kinds = {
        "first": moment,
        "last": moment,
        "ip_version": arrow.uint8(),
        "src": arrow.string(),
        "src_port": arrow.uint16(),
        "dst": arrow.string(),
        "dst_port": arrow.uint16(),
        "ip_protocol": arrow.uint8(),
        "traffic_class": arrow.uint8(),
        "label": arrow.uint32(),
        "label_untold": arrow.bool_(),
        "header_experiment_id": arrow.uint16(),
        "header_activity_id": arrow.uint8(),
        "tag_from": arrow.string(),
        "experiment_id": arrow.uint16(),
        "activity_id": arrow.uint8(),
        "experiment": arrow.string(),
        "activity": arrow.string(),
        "announced": arrow.list_(arrow.list_(arrow.uint16())),
        "packets": arrow.uint64(),
        "octets": arrow.uint64(),
    }
    return arrow.schema(list(kinds.items()))
