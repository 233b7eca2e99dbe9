"""What the doctor finds of extension headers: in which ways they can be had, and what cards make of them."""

from __future__ import annotations

from collections.abc import Iterator

from scitags_agent.config import Config
from scitags_agent.finding import Finding
from scitags_agent.host_facts import missing_rights

_CAPABILITIES = {13: "CAP_NET_RAW", 19: "CAP_SYS_PTRACE"}


def header_findings(config: Config | None) -> Iterator[Finding]:
    """Of the backends that are configured, or of what this host would let one do."""
    yield from _ways(config)
    yield from _cards(config)


def _ways(config: Config | None) -> Iterator[Finding]:
    """In which ways headers can be had, of those that are asked for, the best first."""
    instances = [one for one, _ in config.backends if one.kind.kind == "extension_header"] if config else []
    modes = {str(getattr(one.settings, "mode", "auto")) for one in instances} or {"auto"}
    on_sockets = _why_not_on_sockets() if modes & {"auto", "socket"} else None
    at_tc = _why_not_at_tc() if modes - {"socket"} else None
    if on_sockets is not None:
        is_bad = "socket" in modes or bool(at_tc)
        yield _header_finding("socket", "set on live sockets", on_sockets, "put in at tc", is_bad=is_bad)
    if at_tc is not None:
        is_bad = bool(modes & {"tc", "tc-unreserved"} or on_sockets)
        yield _header_finding("tc", "put in at tc", at_tc, "set on live sockets alone", is_bad=is_bad)
    if modes & {"auto", "tc"}:
        without = "put in at tc where they fit, and not into full packets"
        yield _header_finding("route", "put in at tc with room kept free by routes", _why_no_routes(), without)


def _header_finding(way: str, how: str, why_not: str, otherwise: str, *, is_bad: bool = False) -> Finding:
    subject = f"headers: {way}"
    if not why_not:
        return Finding(subject, "good", f"can be {how}")
    if is_bad:
        return Finding(
            subject, "bad", why_not, "packaging/systemd/extension-header.conf has the rights that are needed"
        )
    return Finding(subject, "note", why_not, f"until then they are {otherwise}")


def _cards(config: Config | None) -> Iterator[Finding]:
    """Interfaces that have packets with headers cut and summed by the processor."""
    from scitags_agent.bpf.interfaces import matching  # noqa: PLC0415
    from scitags_agent.offloads import features, leaves_headers_to_the_processor  # noqa: PLC0415

    instances = [one for one, _ in config.backends if one.kind.kind == "extension_header"] if config else []
    patterns = [pattern for one in instances for pattern in getattr(one.settings, "interfaces", ())]
    for name in sorted(one.name for one in matching(patterns)):
        try:
            enabled = features(name)
        except OSError:
            continue  # gone meanwhile
        if leaves_headers_to_the_processor(enabled):
            yield Finding(
                f"card {name}",
                "note",
                "this card sums TCP over IPv6 alone: packets with a header are cut and summed by the processor",
                "where that is too slow, take the flow label (the backend marker) in place of headers",
            )


def _why_not_at_tc() -> str:
    from scitags_agent.bpf.header_program import probe  # noqa: PLC0415

    return probe() or ""


def _why_not_on_sockets() -> str:
    from scitags_agent.connections import Lookup  # noqa: PLC0415

    try:
        Lookup().close()
    except OSError as error:
        return str(error)
    missing = missing_rights(_CAPABILITIES)
    return f"{', '.join(sorted(missing))} missing in this process" if missing else ""


def _why_no_routes() -> str:
    from scitags_agent.reserved_routes import PROTOCOL  # noqa: PLC0415
    from scitags_agent.rtnetlink import RouteSocket  # noqa: PLC0415

    try:
        with RouteSocket() as asked:
            asked.routes_of(PROTOCOL)
    except OSError as error:
        return str(error)
    missing = missing_rights({12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"})
    return f"{', '.join(sorted(missing))} missing in this process" if missing else ""
