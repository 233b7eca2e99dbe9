"""Which network namespaces patterns mean, and what the commands say of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scitags_agent import namespaces, open_namespaces
from scitags_agent.bpf.connections import namespace_of
from scitags_agent.bpf.namespaces import enter, in_passing_thread
from scitags_agent.host import Host
from scitags_agent.namespaces import Finder, own_number
from scitags_agent.open_namespaces import Namespaces, OpenNamespace
from scitags_core.cli import main
from scitags_core.errors import ConfigError
from tests.netns.cgroups import cgroup
from tests.netns.conftest import Pair
from tests.netns.containers import Container, named, until
from tests.netns.namespaces import Namespace


def number(host: Namespace) -> int:
    return Path(host.path).stat().st_ino


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "namespace '' is none of a name, an absolute path, pid:NUMBER, cgroup:PATH and 'all'"),
        ("run/netns/a", "is none of a name"),
        ("pid:", "'' is no process"),
        ("pid:0", "'0' is no process"),
        ("pid:self", "'self' is no process"),
        ("cgroup:", "'' is no path below the mount of cgroup2"),
        ("cgroup:a/../..", "is no path below"),
    ],
)
def test_what_can_mean_none_is_named(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("(", r"\(")):
        Finder([pattern])


def test_by_process_path_name_and_all_of_them(pair: Pair) -> None:
    alice, bob = number(pair.alice), number(pair.bob)
    found = Finder([f"pid:{pair.alice.pid}", pair.bob.path]).find()
    assert {one.number: one.name for one in found.values()} == {alice: f"pid:{pair.alice.pid}", bob: pair.bob.path}
    assert found.keys() == {alice, bob}
    assert {alice, bob} <= Finder(["all"]).find().keys()
    assert namespaces.own_number() not in Finder(["all", "/proc/self/ns/net"]).find()
    nowhere = ["pid:999999999", "no-such-name", "/no/such/*"]
    finder = Finder([f"/proc/{pair.alice.pid}/ns/*", "/proc/self/ns/net", *nowhere])
    assert finder.find().keys() == {alice}  # those of other kinds are left out
    assert finder.missing() == nowhere


def test_by_cgroup_and_those_below(pair: Pair) -> None:
    code = "import sys; open(sys.argv[1], 'w').write('0'); print('in', flush=True); sys.stdin.read()"
    with cgroup() as top:
        below = top / f"docker-{'0123456789ab' * 5}cdef.scope"
        below.mkdir()
        command = [sys.executable, "-S", "-c", code, str(below / "cgroup.procs")]
        process = pair.alice.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            for pattern in (top.name, f"/{top.name}/{below.name}", f"{top.name[:-1]}?", f"{top.name}/d*"):
                [found] = Finder([f"cgroup:{pattern}"]).find().values()
                assert (found.number, found.name) == (number(pair.alice), "docker-0123456789ab.scope")
                assert found.path == f"/proc/{process.pid}/ns/net"
            pair.alice.close()  # its first process, which is in no container
            assert Finder(["all"]).find()[found.number].name == "docker-0123456789ab.scope"
            assert Finder([f"cgroup:{top.name}/other"]).find() == {}
        finally:
            process.communicate()
            below.rmdir()


def test_it_keeps_its_name_as_long_as_that_leads_there(pair: Pair) -> None:
    pattern = [f"pid:{pair.alice.pid}"]
    with pair.alice.popen(["sleep", "60"]) as other:
        until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n", "the other process")
        finder = Finder(["all"])
        first = finder.find()[number(pair.alice)]
        assert finder.find()[first.number] is first
        pair.alice.close()
        assert finder.find()[first.number].name == f"pid:{other.pid}"
        assert Finder(pattern).find() == {}
        other.kill()


def test_whoever_enters_one_comes_alone(pair: Pair) -> None:
    """No other thread is elsewhere afterwards."""
    home = namespaces.own_number()

    def inside() -> tuple[int, list[int]]:
        enter(pair.alice.path)
        found: list[int] = []
        return namespaces.own_number(), found

    assert in_passing_thread(inside).result()[0] == number(pair.alice)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(namespaces.own_number()))
    thread.start()
    thread.join()
    assert found == [home]
    assert namespaces.own_number() == home == namespaces.of_process(os.getpid())


def opened(host: Namespace) -> OpenNamespace:
    [found] = Finder([host.path]).find().values()

    def inside() -> OpenNamespace:
        enter(found.path)
        return OpenNamespace(found)

    return in_passing_thread(inside).result()


def test_one_that_is_closed_is_not_taken_for_the_next(pair: Pair) -> None:
    """Whose door has its number."""
    alice = opened(pair.alice)
    with alice.borrow() as netlink:
        assert namespace_of(netlink) == alice.cookie
    alice.close()
    bob = opened(pair.bob)
    try:
        with pytest.raises(FileNotFoundError), alice.borrow():
            pass
    finally:
        bob.close()


def test_without_a_thread_they_cannot_be_looked_into_and_are_when_there_is_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        found = Namespaces([pair.alice.path])
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            with pytest.raises(BlockingIOError, match="can't start new thread"):
                found.begin()
        found.begin()
        assert found.present.keys() == {number(pair.alice)}
        found.end()

    asyncio.run(scenario())


def test_who_has_just_come_is_known_before_the_next_look(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an address (a firefly's sender), and by its number (who tells at the Unix socket)."""
    monkeypatch.setattr(open_namespaces, "LOOK_SECONDS", 600.0)
    monkeypatch.setattr(open_namespaces, "HURRIED_SHARE", 1e9)

    async def come(one: Container, other: Container) -> None:
        host = Host([f"scitags-{os.getpid()}-late-*"])
        assert host.namespaces is not None
        try:
            assert not host.is_local(one.storage)
            with named(one, "late-1"):
                assert host.has_just_got(one.storage)
            with named(other, "late-2"):
                assert host.namespaces.by_number(number(other.inside)) is not None
                assert host.namespaces.by_number(own_number()) is None
        finally:
            host.close()

    with Container("one", storage="fd00:7::2") as one, Container("other") as other:
        asyncio.run(come(one, other))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(
        f'[agent]\nstate_directory = "{tmp_path}"\nnamespaces = ["NAME", "scitags-nowhere"]\n'
        f'[[source]]\nkind = "unix"\npath = "{tmp_path}/agent.sock"\n[[backend]]\nkind = "journal"\n'
    )
    return path


def test_check_and_doctor_name_those_that_are_not_there(
    root: None, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Container("one") as one, named(one, "there") as name:
        config.write_text(config.read_text().replace("NAME", name))
        assert main(["agent", "check", "--config", str(config)]) == 0
        note = "namespace scitags-nowhere: there is none now; the agent would wait for it"
        assert capsys.readouterr().out == f"{config}: good: unix, journal\n{note}\n"
        assert main(["agent", "check", "--json", "--config", str(config)]) == 0
        assert json.loads(capsys.readouterr().out)["notes"] == [note]
        assert main(["agent", "doctor", "--json", "--config", str(config)]) == 0
        found = {one["subject"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
        assert found[f"namespace {name}"]["text"] == f"net:[{one.number}] can be looked into"
        assert found["namespace scitags-nowhere"]["verdict"] == "note"


def test_the_doctor_knows_the_rights_that_are_needed(root: None, config: Path) -> None:
    with Container("one") as one, named(one, "there") as name:
        config.write_text(config.read_text().replace("NAME", name))
        entered, processes = doctor(config)
        assert entered == {
            "subject": f"namespace {name}",
            "verdict": "bad",
            "text": "it cannot be entered: setns: Operation not permitted (CAP_SYS_ADMIN missing in this process)",
            "remedy": "packaging/systemd/namespaces.conf has the rights that are needed",
        }
        assert processes["verdict"] == "note"
        config.write_text(config.read_text().replace(name, one.inside.path))
        [processes] = doctor(config)
        assert processes["text"] == "those of some processes cannot be seen (CAP_SYS_PTRACE missing in this process)"


def doctor(config: Path) -> list[dict[str, str]]:
    """What it says of the namespaces that are there, without the rights to look into them."""
    ours = Path(sys.executable).parent / "scitags"
    command = ["setpriv", "--bounding-set=-sys_admin,-sys_ptrace", str(ours), "agent", "doctor", "--json"]
    done = subprocess.run([*command, "--config", str(config)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)["findings"]
    return [one for one in findings if "namespace" in one["subject"] and "nowhere" not in one["subject"]]


BRIDGED = """
import subprocess
from pyroute2 import IPRoute
from scitags_agent import doctor
subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
with IPRoute() as netlink:
    netlink.link("add", ifname="bridge0", kind="bridge")
    netlink.link("add", ifname="port0", kind="veth", peer={"ifname": "free0"})
    bridge, port = (netlink.link_lookup(ifname=name)[0] for name in ("bridge0", "port0"))
    netlink.link("set", index=port, master=bridge)
for one in doctor.examine(None):
    if one.subject in ("port0", "free0"):
        print(one.subject, one.verdict, one.text.rpartition(", ")[2], bool(one.remedy))
"""


def test_the_doctor_has_nothing_to_say_of_the_host_s_ends_of_containers(root: None) -> None:
    """Ports of a bridge have no addresses, and there is one for each container."""
    command = ["unshare", "--net", "--mount", sys.executable, "-c", BRIDGED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.splitlines()) == [
        "free0 note no global IPv6 address True",
        "port0 good a port of bridge0 False",
    ]
