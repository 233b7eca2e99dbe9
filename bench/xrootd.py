"""What the plug-in costs a real xrootd: opening and closing files, and the throughput of a download.

Two servers on loopback, one with the plug-in and an agent, one without, asked in turn.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from tests.xrootd.certificate import Authority
from tests.xrootd.host import Agent
from tests.xrootd.server import CONFIG, Server, free_port

OPENS, ROUNDS, DOWNLOADS = 1_000, 15, 4
OPENED = OPENS * ROUNDS + 200  # with those before the first round
OCTETS = 4_000_000_000
BARE = "\n".join(line for line in CONFIG.splitlines() if "{library}" not in line and "{lines}" not in line)
# One process asks both servers in turn: what it and the network cost is the same for both.
CLIENT = """
import json, sys, time
from XRootD import client
count, rounds, *urls = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
def opens(url, count):
    began = time.perf_counter()
    for _ in range(count):
        file = client.File()
        assert file.open(url)[0].ok
        assert file.close()[0].ok
    return (time.perf_counter() - began) / count * 1e6
for url in urls:
    opens(url, 200)
found = [[0] * 0 for _ in urls]
for _ in range(rounds):
    for number, url in enumerate(urls):
        found[number].append(opens(url, count))
print(json.dumps(found))
"""


def main() -> None:
    with ExitStack() as stack:
        authority = Authority()
        stack.callback(authority.close)
        agent = Agent(None, backends="")
        stack.callback(agent.close)
        agent.start()
        servers = {
            "without": Server(authority, "", root_port=free_port(), http_port=free_port(), config=BARE),
            "with": Server(authority, f"scitags.socket {agent.socket}", root_port=free_port(), http_port=free_port()),
        }
        for server in servers.values():
            stack.callback(server.close)
            server.start()
            with server.put("file", b"").open("r+b") as file:
                file.truncate(OCTETS)
        before = {name: _busy(server) for name, server in servers.items()}
        opens = _opens(list(servers.values()))
        busy = {
            name: [(after - was) / OPENED / 1000 for after, was in zip(_busy(server), before[name], strict=True)]
            for name, server in servers.items()
        }
        print(f"\nopen and close of a file, {ROUNDS} rounds of {OPENS} each, interleaved")
        without, with_ = (statistics.median(one) for one in opens)
        more = statistics.median(b - a for a, b in zip(*opens, strict=True))
        print(f"  {'without the plug-in':<44} {without:>10.1f} us")
        print(f"  {'with it':<44} {with_:>10.1f} us   {more:+.1f} us")
        print("processor time of the server for each, threads that serve; the plug-in's own thread")
        for name, (serving, sending) in busy.items():
            print(f"  {name:<44} {serving:>10.1f} us; {sending:.1f} us", flush=True)
        rates = _downloads(servers)
    print(f"\ndownloads of {OCTETS:,} octets, {DOWNLOADS} of each, interleaved")
    for name, found in rates.items():
        print(f"  {name:<44} {statistics.median(found) / 1e6:>10,.0f} MB/s")
    ratio = statistics.median(b / a for a, b in zip(rates["without"], rates["with"], strict=True))
    print(f"  {'with / without':<44} {ratio:>10.4f}")
    print(json.dumps({"open_close_us": {"without": without, "more": more}, "throughput_ratio": ratio}))


def _busy(server: Server) -> tuple[int, int]:
    """Nanoseconds for which the server's threads have run: those that serve, and the plug-in's own."""
    assert server.process is not None
    found = {True: 0, False: 0}
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        is_ours = (task / "comm").read_text().strip() == "scitags"
        found[is_ours] += int((task / "schedstat").read_text().split()[0])
    return found[False], found[True]


def _opens(servers: list[Server]) -> list[list[float]]:
    urls = [server.url("root", "127.0.0.1", "file?scitag.flow=143") for server in servers]
    command = ["/usr/bin/python3", "-c", CLIENT, str(OPENS), str(ROUNDS), *urls]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[list[float]] = json.loads(done.stdout)
    return found


def _downloads(servers: dict[str, Server]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():  # the file is in memory from then on
        subprocess.run(
            ["xrdcp", "--nopbar", "--force", "--silent", server.url("root", "127.0.0.1", "file"), "/dev/null"],
            check=True,
        )
    for number in range(DOWNLOADS):
        for name in servers if number % 2 else reversed(servers):
            url = servers[name].url("root", "127.0.0.1", "file?scitag.flow=143")
            began = time.perf_counter()
            subprocess.run(["xrdcp", "--nopbar", "--force", "--silent", url, "/dev/null"], check=True)
            rates[name].append(OCTETS / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    main()
