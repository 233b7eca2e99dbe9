"""Events through the named pipe to fireflies, beside a reader that only splits the lines."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import interleaved, show
from scitags_agent.client import AgentClient, AgentUnavailable

COUNT = 40_000
ROUNDS = 3
START_SECONDS = 15
LINE = b"start tcp [fd00:1:0:0:0:0:0:1] 8085 [fd00:1:0:0:0:0:%x:2] %d 2 15\n"

WRITER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY)
for number in range(int(sys.argv[2])):
    os.write(descriptor, %r %% (number // 60000, 1 + number %% 60000))
"""

READER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
lines = 0
while lines < int(sys.argv[2]):
    lines += len(os.read(descriptor, 65536).split(b"\\n")) - 1
"""


def write(path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITER % LINE, path, str(COUNT)], check=True, timeout=120)


def plain(directory: Path) -> int:
    """One process writes, another reads and splits: what the pipe itself allows here."""
    path = directory / "plain"
    os.mkfifo(path)
    reader = subprocess.Popen([sys.executable, "-c", READER, path, str(COUNT)])
    write(path)
    reader.wait(60)
    path.unlink()
    return COUNT


def through_the_agent(directory: Path, client: AgentClient) -> int:
    """The same lines, each to a firefly sent to a collector on loopback."""
    before = client.status(timeout=30)["backends"]["firefly"]["sent"]
    write(directory / "flowd")
    while client.status(timeout=30)["backends"]["firefly"]["sent"] - before < COUNT:
        time.sleep(0.01)
    return COUNT


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as collector,
    ):
        collector.bind(("::1", 0))
        directory = Path(name)
        config = directory / "agent.toml"
        config.write_text(
            f'[agent]\nstate_directory = "{directory}/state"\n'
            f'[[source]]\nkind = "named_pipe"\npath = "{directory}/flowd"\n'
            f'[[source]]\nkind = "unix"\npath = "{directory}/agent.sock"\n'
            f'[[backend]]\nkind = "firefly"\nto_destination = false\n'
            f'collectors = ["[::1]:{collector.getsockname()[1]}"]\n'
        )
        agent = subprocess.Popen([sys.executable, "-m", "scitags_agent", "--config", config])
        try:
            with AgentClient(directory / "agent.sock") as client:
                wait_for(client)
                results = interleaved(
                    {
                        "a reader that splits lines": lambda: plain(directory),
                        "the agent, a firefly for each": lambda: through_the_agent(directory, client),
                    },
                    rounds=ROUNDS,
                )
        finally:
            agent.terminate()
            agent.wait(30)
    show(f"{COUNT:,} events through a named pipe, one write each (the writer's start included)", "events", results)


def wait_for(client: AgentClient) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(AgentUnavailable):
            client.status()
            return
        time.sleep(0.05)
    raise TimeoutError("the agent does not answer")
