"""What the plug-in costs a real xrootd: opening and closing files, and the throughput of a download.

Servers on loopback, without the plug-in and with it, asked in turn. Files are opened from four: the plug-in of the
third tells a program that only reads, which is what it costs by itself; an agent on the same processors has work of
its own. The fourth waits for its agent, as scitags.wait has it.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from scitags_demo.authority import Authority
from tests.xrootd.host import Agent
from tests.xrootd.server import CONFIG, Server, free_port

OPENS, ROUNDS, DOWNLOADS = 400, 60, 20
OCTETS = 4_000_000_000
BARE = "\n".join(line for line in CONFIG.splitlines() if "{library}" not in line and "{lines}" not in line)
# One process asks all servers in turn, as it is told: what it and the network cost is the same for all.
CLIENT = """
import sys, time
from XRootD import client
count = int(sys.argv[1])
for url in map(str.strip, sys.stdin):
    began = time.perf_counter()
    for _ in range(count):
        file = client.File()
        assert file.open(url)[0].ok
        assert file.close()[0].ok
    print((time.perf_counter() - began) / count * 1e6, flush=True)
"""

READER = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
while True:
    for descriptor in socket.recv_fds(listener, 65536, 64)[1]:
        os.close(descriptor)
"""
WITHOUT, AGENT, READ = "without the plug-in", "with it, told to an agent", "with it, told to one who only reads"
WAIT = "with it, and the agent waited for"


def main() -> None:
    with ExitStack() as stack:
        authority = Authority()
        stack.callback(authority.close)
        agent = Agent(None, backends="")
        stack.callback(agent.close)
        agent.start()
        socket = agent.directory / "reader.sock"
        reader = subprocess.Popen([sys.executable, "-c", READER, socket])
        stack.callback(reader.wait)
        stack.callback(reader.kill)
        servers = {
            WITHOUT: Server(authority, "", root_port=free_port(), http_port=free_port(), config=BARE),
            AGENT: Server(authority, f"scitags.socket {agent.socket}", root_port=free_port(), http_port=free_port()),
            READ: Server(authority, f"scitags.socket {socket}", root_port=free_port(), http_port=free_port()),
            WAIT: Server(
                authority,
                f"scitags.socket {agent.socket}\nscitags.wait 1000",
                root_port=free_port(),
                http_port=free_port(),
            ),
        }
        for server in servers.values():
            stack.callback(server.close)
            server.start()
            with server.put("file", b"").open("r+b") as file:
                file.truncate(OCTETS)
        opens = _opens(servers)
        _show_opens(opens)
        del servers[READ], servers[WAIT]
        downloads = _downloads(servers)
    print(f"\ndownloads of {OCTETS:,} octets, {DOWNLOADS} of each, interleaved")
    for name, each in downloads.items():
        rate, busy_seconds = (statistics.median(values) for values in zip(*each, strict=True))
        print(f"  {name:<44} {rate / 1e6:>10,.0f} MB/s {busy_seconds:>8.2f} s of the server's processor time")
    ratios = {}
    for number, what in enumerate(("throughput", "processor time")):
        pairs = zip(downloads[WITHOUT], downloads[AGENT], strict=True)
        parts = [with_[number] / without[number] for without, with_ in pairs]
        low, middle, high = statistics.quantiles(parts, n=4)
        ratios[what.replace(" ", "_")] = middle
        print(f"  {what + ', with / without':<44} {middle:>10.4f}   quartiles {low:.4f} to {high:.4f}")
    print(
        json.dumps({"open_close_more_processor_us": {name: _more(opens, name)[1] for name in opens}, "ratios": ratios})
    )


def _busy(server: Server) -> tuple[int, int]:
    """Nanoseconds for which the server's threads have run: those that serve, and the plug-in's own."""
    assert server.process is not None
    found = {True: 0, False: 0}
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        is_ours = (task / "comm").read_text().strip() == "scitags"
        found[is_ours] += int((task / "schedstat").read_text().split()[0])
    return found[False], found[True]


class Opens(NamedTuple):
    """Of each open and close in a round: microseconds."""

    waited: float
    serving: float
    sending: float


def _opens(servers: dict[str, Server]) -> dict[str, list[Opens]]:
    """Rounds of all servers, each time in another order: what this machine does beside them falls on all alike."""
    command = ["/usr/bin/python3", "-c", CLIENT, str(OPENS)]
    found: dict[str, list[Opens]] = {name: [] for name in servers}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for number in range(ROUNDS + 1):
            for name in random.sample(list(servers), len(servers)):
                before = _busy(servers[name])
                print(servers[name].url("root", "127.0.0.1", "file?scitag.flow=143"), file=client.stdin, flush=True)
                waited = float(client.stdout.readline())
                busy = [(after - was) / OPENS / 1000 for after, was in zip(_busy(servers[name]), before, strict=True)]
                if number:  # in the first the connection is made, and the plug-in's thread
                    found[name].append(Opens(waited, *busy))
    return found


def _more(opens: dict[str, list[Opens]], name: str) -> list[float]:
    """Quartiles, over the rounds, of the microseconds for which the serving threads ran longer than those without."""
    pairs = zip(opens[name], opens[WITHOUT], strict=True)
    return statistics.quantiles([with_.serving - without.serving for with_, without in pairs], n=4)


def _show_opens(opens: dict[str, list[Opens]]) -> None:
    print(f"\nopen and close of a file, {ROUNDS} rounds of {OPENS} each, interleaved, medians: what the client waits;")
    print("processor time of the server's threads that serve; of the plug-in's own thread")
    for name, rounds in opens.items():
        waited, serving, sending = (statistics.median(each) for each in zip(*rounds, strict=True))
        low, middle, high = _more(opens, name)
        more = f" {middle:+.1f} us (quartiles {low:+.1f} to {high:+.1f})" if name != WITHOUT else ""
        print(f"  {name:<44} {waited:>10.1f} us; {serving:.1f} us{more}; {sending:.1f} us", flush=True)


def _downloads(servers: dict[str, Server]) -> dict[str, list[tuple[float, float]]]:
    """Octets per second, and seconds for which the server's threads ran, of each download."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for number in range(DOWNLOADS + 1):
        for name in servers if number % 2 else reversed(servers):
            url = servers[name].url("root", "127.0.0.1", "file?scitag.flow=143")
            before, began = sum(_busy(servers[name])), time.perf_counter()
            subprocess.run(["xrdcp", "--nopbar", "--force", "--silent", url, "/dev/null"], check=True)
            rate = OCTETS / (time.perf_counter() - began)
            if number:  # the file is in memory from the first on
                found[name].append((rate, (sum(_busy(servers[name])) - before) / 1e9))
    return found


if __name__ == "__main__":
    main()
