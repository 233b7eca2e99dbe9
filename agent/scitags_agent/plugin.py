"""The agent's plug-in: its kinds of source, backend and enricher, and `scitags agent`.

What costs time to import is imported when a hook is asked, not before.
"""

from __future__ import annotations

from collections.abc import Iterable

from scitags_core import hookimpl
from scitags_core.roles import BackendKind, Command, EnricherKind, SourceKind


@hookimpl
def provide_sources() -> Iterable[SourceKind]:
    """The named pipe, the Unix socket, and what the kernel tells of connections."""
    from scitags_agent.sources import named_pipe, sock_diag, sock_ops, unix  # noqa: PLC0415

    return named_pipe.KIND, unix.KIND, sock_diag.KIND, sock_ops.KIND, sock_ops.IPERF3


@hookimpl
def provide_backends() -> Iterable[BackendKind]:
    """The marker, the fireflies, the metrics for Prometheus, and the records in a file or in the journal."""
    from scitags_agent.backends import firefly, journal, jsonl, marker, prometheus  # noqa: PLC0415

    return marker.KIND, firefly.KIND, prometheus.KIND, jsonl.KIND, journal.KIND


@hookimpl
def provide_enrichers() -> Iterable[EnricherKind]:
    """What sock_diag knows of a connection, and what the kernel tells as one closes."""
    from scitags_agent.enrichers import sock_diag, sock_ops  # noqa: PLC0415

    return sock_diag.KIND, sock_ops.KIND


@hookimpl
def provide_commands() -> Iterable[Command]:
    """`scitags agent`."""
    from scitags_agent import cli  # noqa: PLC0415

    return (cli.COMMAND,)
