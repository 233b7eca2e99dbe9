"""The agent's plug-in: its kinds of source, backend and enricher, and `scitags agent`.

What is not configured is not imported: an agent that runs for years has the size of what it does.
"""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import BackendKind, Command, EnricherKind, SourceKind


@hookimpl
def provide_sources() -> Iterable[SourceKind]:
    """The named pipe, the Unix socket, and what the kernel tells of connections."""
    return (
        SourceKind("named_pipe", at="scitags_agent.sources.named_pipe:KIND"),
        SourceKind("unix", at="scitags_agent.sources.unix:KIND"),
        SourceKind("firefly", at="scitags_agent.sources.firefly:KIND"),
        SourceKind("http", at="scitags_agent.sources.http:KIND"),
        SourceKind("sock_diag", at="scitags_agent.sources.sock_diag:KIND"),
        SourceKind("sock_ops", at="scitags_agent.sources.sock_ops:KIND"),
        SourceKind("iperf3", at="scitags_agent.sources.sock_ops:IPERF3"),
    )


@hookimpl
def provide_backends() -> Iterable[BackendKind]:
    """The marker, the fireflies, the metrics for Prometheus, and the records in a file or in the journal."""
    names = ("marker", "extension_header", "firefly", "prometheus", "jsonl", "journal")
    return [BackendKind(name, at=f"scitags_agent.backends.{name}:KIND") for name in names]


@hookimpl
def provide_enrichers() -> Iterable[EnricherKind]:
    """What sock_diag knows of a connection, and what the kernel tells as one closes."""
    return [EnricherKind(name, at=f"scitags_agent.enrichers.{name}:KIND") for name in ("sock_diag", "sock_ops")]


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags agent`."""
    from scitags_agent import cli  # noqa: PLC0415

    return (cli.COMMAND,)
