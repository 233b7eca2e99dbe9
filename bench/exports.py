"""Reading what routers export: IPFIX records and sFlow samples, decoded alone, and counted by flow, tag and time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from bench.measure import interleaved, show
from scitags_collector.exports import Exports
from scitags_collector.observation import Observation
from scitags_core import label, registry_history
from tests.collector import messages as m
from tests.netns import packets as p

DATAGRAMS = 1000
FLOWS = 500
RECORDS = 19  # as many as a datagram of 1500 octets holds
SAMPLES = 7
SOURCE = ("192.0.2.1", 50000)
NOW = m.SECONDS * 10**9
KNOWN = m.ipfix(m.template(256, m.IPV6_FLOW))


def tag_label(number: int) -> int:
    return label.encode(2, 15, number % 32) * (number & 1)


def of_ipfix() -> list[bytes]:
    records = [m.flow(tag_label(number), port=1 + number) for number in range(FLOWS)]
    return [
        m.ipfix(
            m.set_of(256, b"".join(records[(one * RECORDS + number) % FLOWS] for number in range(RECORDS))),
            sequence=one * RECORDS,
        )
        for one in range(DATAGRAMS)
    ]


def of_sflow() -> list[bytes]:
    frames = [
        p.ethernet(p.ipv6(p.tcp(source=1 + number) + bytes(1400), label=tag_label(number))) for number in range(FLOWS)
    ]
    samples = [m.flow_sample(m.raw_header(frame)) for frame in frames]
    return [
        m.sflow(*(samples[(one * SAMPLES + number) % FLOWS] for number in range(SAMPLES)), sequence=one)
        for one in range(DATAGRAMS)
    ]


def decoded(datagrams: list[bytes]) -> int:
    exports = Exports()
    return sum(len(exports.read(datagram, SOURCE, NOW)) for datagram in [KNOWN, *datagrams])


def observed(datagrams: list[bytes]) -> int:
    exports, observation = Exports(), Observation(registry_history.built_in().registry())
    for datagram in [KNOWN, *datagrams]:
        for one in exports.read(datagram, SOURCE, NOW):
            observation.add_exported(one)
    return sum(flow.total.packets > 0 for flow in observation.flows()) and exports_records(exports)


def exports_records(exports: Exports) -> int:
    return sum(one.records for one in exports.exporters())


def decoded_by_netflow(datagrams: list[bytes]) -> int:
    """By the library of that name, which makes an object of each record."""
    import netflow  # noqa: PLC0415

    templates: dict[str, dict[int, object]] = {"netflow": {}, "ipfix": {}}
    return sum(len(netflow.parse_packet(datagram, templates).flows) for datagram in [KNOWN, *datagrams])


def main() -> None:
    ipfix, sflow = of_ipfix(), of_sflow()
    cases: dict[str, Callable[[], int]] = {
        "decoded alone": lambda: decoded(ipfix),
        "observed: by flow, tag and time": lambda: observed(ipfix),
    }
    if importlib.util.find_spec("netflow"):
        cases["decoded by the library netflow"] = lambda: decoded_by_netflow(ipfix)
    else:
        print("the library netflow is not installed: not compared with it")
    show(f"IPFIX, {DATAGRAMS * RECORDS:,} flow records of {FLOWS} flows", "records", interleaved(cases, rounds=5))
    samples = {
        "decoded alone": lambda: decoded(sflow),
        "observed: by flow, tag and time": lambda: observed(sflow),
    }
    show(f"sFlow, {DATAGRAMS * SAMPLES:,} samples of {FLOWS} flows", "samples", interleaved(samples, rounds=5))
