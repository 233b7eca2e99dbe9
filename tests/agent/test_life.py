"""What outlives an agent, a new configuration while it runs, and what asks it how it is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from scitags_agent.client import AgentClient
from scitags_agent.ledger import Frame, Ledger, LedgerUnusable
from scitags_agent.outbox import Outbox, pack_address, unpack_address
from scitags_agent.table import FlowTable
from scitags_core import firefly
from scitags_core.cli import main
from scitags_core.flow import FlowKey, FlowState
from tests.agent.conftest import Agent, Collector, firefly_backend, wait_for
from tests.agent.events import ANALYSIS, KEY, NOON, end, seconds, start

# --- the ledger -------------------------------------------------------------------------------------


def test_what_was_written_is_read_again_and_a_torn_frame_is_left_out(tmp_path: Path) -> None:
    table = FlowTable(max_users=10, idle=seconds(100))
    (change,) = table.apply(start(), NOON)
    ledger = Ledger(tmp_path)
    ledger.rotate(table.serial, list(table.flows()), {"pipe": b"7"}, [change])
    frames = [Frame("pipe", b"8", NOON, [start(ANALYSIS)]), Frame("unix", b"", NOON, [end()])]
    for frame in frames:
        ledger.append(frame)
    ledger.close()
    with (tmp_path / "events-1").open("ab") as file:
        file.write(b"\xff\x00\x00\x00torn")
    again = Ledger(tmp_path)
    snapshot, found = again.load()
    assert (snapshot.serial, snapshot.positions, snapshot.outstanding) == (1, {"pipe": b"7"}, [change])
    assert dict(snapshot.flows)[KEY].users[0].start_time == NOON
    assert found == frames
    again.rotate(2, [], {}, [])
    assert {one.name for one in tmp_path.iterdir()} == {"lock", "snapshot", "events-2"}
    again.remove()
    assert not tmp_path.exists()


def test_a_ledger_is_for_one_agent_and_for_one_boot(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(LedgerUnusable, match="in use by another agent"):
        Ledger(tmp_path)
    ledger.rotate(5, [], {}, [])
    ledger.done("firefly", 4).close()
    ledger.close()
    snapshot = tmp_path / "snapshot"
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    snapshot.write_bytes(snapshot.read_bytes().replace(boot, b"0" * len(boot)))
    ledger = Ledger(tmp_path)
    assert ledger.load()[0].serial == 0
    assert {one.name for one in tmp_path.iterdir()} == {"lock"}
    ledger.close()


def test_a_ledger_that_cannot_be_read_is_forgotten_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.rotate(500, [], {}, [])
    ledger.done("firefly", 500).close()
    (ledger.home("backend firefly") / "outbox").touch()
    ledger.close()
    (tmp_path / "snapshot").write_bytes(b"\x92rubbish")
    ledger = Ledger(tmp_path)
    assert ledger.load()[0].serial == 0
    assert {one.name for one in tmp_path.iterdir()} == {"lock"}
    ledger.close()


@pytest.mark.parametrize("damage", ["another format", "a frame that is none"])
def test_what_is_in_the_kernel_is_known_to_the_next_when_the_flows_cannot_be_read(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path)
    ledger.rotate(500, [], {"pipe": b"7"}, [])
    ledger.note_seen([KEY])
    ledger.done("firefly", 500).close()
    (ledger.home("backend marker") / "programs").write_text("[7]")
    (ledger.home("source pipe") / "spool").touch()
    ledger.close()
    if damage == "another format":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        (tmp_path / "snapshot").write_bytes(msgspec.msgpack.encode([99, boot, {"what": "ever"}]))
    else:
        (tmp_path / "events-1").write_bytes(b"\1\0\0\0\xc1")
    ledger = Ledger(tmp_path)
    snapshot, frames = ledger.load()
    assert (snapshot.flows, snapshot.positions, snapshot.outstanding, frames) == ([], {}, [], [])
    assert snapshot.serial > 500
    assert {one.name for one in tmp_path.iterdir()} == {"lock", "done-firefly", "of-backend%20marker"}
    assert (ledger.home("backend marker") / "programs").read_text() == "[7]"
    assert "the flows that an earlier agent had are forgotten" in caplog.text
    ledger.rotate(snapshot.serial, [], {}, [])
    assert ledger.load()[0].serial == snapshot.serial
    ledger.close()


def test_the_flows_whose_connections_were_seen_are_remembered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.note_seen({KEY, KEY.reversed()})
    ledger.close()
    ledger = Ledger(tmp_path)
    assert set(ledger.seen()) == {KEY, KEY.reversed()}
    ledger.close()


# --- the outbox -------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["2001:db8::7", "192.0.2.7"])
def test_addresses_are_packed_and_unpacked(address: str) -> None:
    assert unpack_address(pack_address(address, 10514)) == (address, 10514, 0)


def test_datagrams_of_both_families_in_bulk_and_alone(collector: Collector) -> None:
    other = Collector(socket.AF_INET)
    try:
        here, there = pack_address("::1", collector.port), pack_address("127.0.0.1", other.port)
        outbox = Outbox(None)
        outbox.open()
        circular = [b'{"n":%d}' % number for number in range(500)]
        letters = [(b"letter %d" % number, there if number % 2 else here) for number in range(100)]
        outbox.post(letters, circular, [here, there], 7)
        assert outbox.send()
        assert (outbox.sent, outbox.errors) == (1100, 0)
        for parity, one in enumerate((collector, other)):
            expected = [*circular, *(b"letter %d" % number for number in range(parity, 100, 2))]
            assert [datagram.rstrip() for datagram in one.wait(550)] == expected
        outbox.close()
    finally:
        other.close()


def test_what_was_posted_and_not_sent_is_sent_by_the_next(tmp_path: Path, collector: Collector) -> None:
    here = pack_address("::1", collector.port)
    first = Outbox(tmp_path / "outbox")
    first.post([(b"one", here), (b"two", here)], [b"three"] * 20, [here], 9)
    first.close()  # as a kill would leave it: nothing has been sent
    second = Outbox(tmp_path / "outbox")
    second.open()
    assert second.finish() == 9
    second.close()
    assert sorted(collector.wait(22)) == [b"one", *[b"three"] * 20, b"two"]
    third = Outbox(tmp_path / "outbox")
    third.open()
    assert (third.finish(), third.sent) == (9, 0)
    third.close()


def test_an_unreachable_address_costs_no_other(collector: Collector) -> None:
    outbox = Outbox(None)
    outbox.open()
    here, nowhere = pack_address("::1", collector.port), pack_address("::1", 0)  # no port that one can send to
    outbox.post([(b"a", here), (b"b", nowhere), (b"c", here)], [], [], 1)
    assert outbox.send()
    assert (outbox.sent, outbox.errors, next(iter(outbox.failures))[0]) == (2, 1, nowhere)
    assert collector.wait(2) == [b"a", b"c"]
    outbox.close()


# --- an agent that starts again ------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_flows_are_taken_over_and_end_once(
    make_agent: Callable[..., Agent], collector: Collector, how: signal.Signals
) -> None:
    agent = make_agent(firefly_backend(collector))
    with AgentClient(agent.socket) as client:
        client.announce([start()])
    began = collector.events(1)[0].start_time
    agent.stop(how)
    agent.start()
    assert agent.status()["table"]["transfers"] == 1
    with AgentClient(agent.socket) as client:
        client.announce([end()])
    found = collector.events(2)
    assert (found[1].state, found[1].start_time) == (FlowState.END, began)
    assert agent.stop() == 0
    assert not (agent.config.parent / "state").exists()
    assert len(collector.datagrams) == 2


def test_flows_whose_connections_went_while_no_agent_looked_end(
    make_agent: Callable[..., Agent], collector: Collector
) -> None:
    agent = make_agent(firefly_backend(collector), more="[table]\ngone_seconds = 0.2")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        near = socket.create_connection(server.getsockname()[:2])
        far, _ = server.accept()
    key = FlowKey.of(*near.getsockname()[:2], *near.getpeername()[:2])
    with AgentClient(agent.socket) as client:
        client.announce([start(key=key), start()])
    wait_for((agent.config.parent / "state" / "seen").exists, what="a look at the connections")
    agent.kill()
    near.close()
    far.close()
    agent.start()
    wait_for(lambda: agent.status()["table"]["flows"] == 1, what="the end of the flow")
    assert [one.key for one in collector.events(3) if one.state is FlowState.END] == [key]
    with AgentClient(agent.socket) as client:  # its reporter is late, and is no news
        late = msgspec.structs.replace(end(key=key), start_time=NOON, end_time=NOON + seconds(1))
        client.announce([late])
    assert len(collector.datagrams) == 3


def test_ongoing_flows_are_told_of(make_agent: Callable[..., Agent], collector: Collector) -> None:
    agent = make_agent(firefly_backend(collector), more="[table]\nongoing_seconds = 0.3")
    with AgentClient(agent.socket) as client:
        client.announce([start()])
    wait_for(lambda: len(collector.datagrams) >= 3, what="two reports")
    assert {one.state for one in collector.events(3)[1:]} == {FlowState.ONGOING}


# --- a new configuration ------------------------------------------------------------------------------


def test_a_new_configuration_is_taken_and_a_bad_one_is_refused(
    make_agent: Callable[..., Agent], collector: Collector
) -> None:
    other = Collector()
    try:
        agent = make_agent(firefly_backend(collector))
        assert agent.process is not None
        with AgentClient(agent.socket) as client:
            client.announce([start()])
            collector.wait(1)
            text = agent.config.read_text()
            agent.config.write_text(text.replace(str(collector.port), str(other.port)))
            agent.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "has been read again" in agent.log.read_text(), what="the new configuration")
            client.announce([end()])
            other.wait(1)
            assert len(collector.datagrams) == 1
            agent.config.write_text("[[source]]\nkind = 'nothing'\n")
            agent.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "the old one stays" in agent.log.read_text(), what="a refusal")
            client.announce([start(), end()])
            other.wait(3)
            agent.config.write_text(text + f'[[source]]\nkind = "named_pipe"\nname = "b"\npath = "{agent.pipe}2"\n')
            agent.process.send_signal(signal.SIGHUP)
            wait_for(Path(f"{agent.pipe}2").exists, what="the new pipe")
            assert set(agent.status()["backends"]) == {"firefly"}
            client.announce([start()])
            collector.wait(2)
        assert agent.stop() == 0
        assert not Path(f"{agent.pipe}2").exists()
    finally:
        other.close()


def test_how_the_log_is_written_is_read_again(agent: Agent, collector: Collector) -> None:
    assert agent.process is not None
    text = agent.config.read_text()
    for settings, said in (
        ('format = "json"', '"message":"the configuration has been read again"'),
        ('level = "info"', "info: the configuration has been read again"),
    ):
        agent.config.write_text(f"{text}[log]\n{settings}\n")
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: said in agent.log.read_text(), what="the new form")  # noqa: B023
    with AgentClient(agent.socket) as client:
        answer = client._ask({"request": "events", "events": [{"a\nerror: forged \x1b[2J": 1}]}, 5)
    assert "forged" in answer["refused"][0]
    lines = agent.log.read_text().splitlines()
    assert lines[-1].startswith("warning: refused")
    assert "a\\nerror: forged \\x1b[2J" in lines[-1]


# --- asked how it is ----------------------------------------------------------------------------------


def test_clean_takes_away_where_nobody_listens_any_more(
    agent: Agent, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.kill()
    assert agent.pipe.is_fifo()  # whoever opens it to write would wait for ever
    assert main(["agent", "clean", "--config", str(agent.config)]) == 0
    said = capsys.readouterr().out
    for path in (agent.pipe, agent.socket):
        assert f"{path} removed\n" in said
        assert not path.exists()
    # What is another's stays.
    os.mkfifo(agent.pipe)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(agent.socket))
        other.listen()
        agent.config.parent.joinpath("state").mkdir()
        assert main(["agent", "clean", "--config", str(agent.config)]) == 0
        assert agent.pipe.exists()
        assert agent.socket.exists()


def test_flows_top_and_doctor(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    with AgentClient(agent.socket) as client:
        client.announce([start()])
    assert main(["agent", "flows", "--socket", str(agent.socket)]) == 0
    assert "atlas       Production Input  tcp  [2001:db8::1]:1094" in capsys.readouterr().out
    assert main(["agent", "flows", "--json", "--socket", str(agent.socket)]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["src_port"] == 1094
    assert main(["agent", "top", "--rounds", "2", "--seconds", "0.1", "--socket", str(agent.socket)]) == 0
    assert "1 transfers on 1 connections, 0 events/s" in capsys.readouterr().out
    assert main(["agent", "doctor", "--config", str(agent.config)]) == 0
    assert "ledger" in capsys.readouterr().out


def test_the_doctor_names_what_is_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(
        '[[source]]\nkind = "unix"\n[[backend]]\nkind = "firefly"\ncollectors = ["nowhere.invalid"]\n'
        'source = ["192.0.2.77"]\n[[source]]\nkind = "named_pipe"\ngroup = "no-such-group"\n'
        '[[backend]]\nkind = "marker"\ninterfaces = ["no-such-interface"]\n'
        '[[backend]]\nkind = "extension_header"\ninterfaces = ["lo", "neither"]\n'
        f'[[backend]]\nkind = "jsonl"\npath = "{tmp_path}/none/flows"\n'
    )
    assert main(["agent", "doctor", "--json", "--config", str(config)]) == 1
    found = {one["subject"]: one for one in msgspec.json.decode(capsys.readouterr().out)["findings"]}
    assert found["interfaces"]["text"] == "none matches no-such-interface"
    assert found["interface neither"]["verdict"] == "note"
    assert found["configuration"]["text"] == "named_pipe: there is no group 'no-such-group'"
    assert found["firefly: 192.0.2.77"]["text"] == "cannot be sent from: Cannot assign requested address"
    assert found[f"jsonl: {tmp_path}/none/flows"]["text"] == f"there is no directory {tmp_path}/none"
    assert found["collector nowhere.invalid"]["verdict"] == "bad"
    config.write_text("[[sauce]]\n")
    assert main(["agent", "doctor", "--config", str(config)]) == 1
    assert "scitags agent check" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes rights away")
@pytest.mark.parametrize(
    ("mode", "without", "status", "found"),
    [
        ("socket", "net_raw,-sys_ptrace", 1, {"socket": "bad"}),
        ("auto", "net_raw,-sys_ptrace", 0, {"socket": "note", "tc": "good", "route": "note"}),
        ("auto", "bpf,-sys_admin", 0, {"socket": "good", "tc": "note", "route": "good"}),
        ("tc", "bpf,-sys_admin", 1, {"tc": "bad", "route": "good"}),
    ],
)
def test_the_doctor_knows_what_headers_need(
    tmp_path: Path, mode: str, without: str, status: int, found: dict[str, str]
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[[source]]\nkind = "unix"\n[[backend]]\nkind = "extension_header"\nmode = "{mode}"\n'
        f'[agent]\nstate_directory = "{tmp_path}"\n'
    )
    ours = Path(sys.executable).parent / "scitags"
    prefix = ["setpriv", f"--bounding-set=-{without}"]
    command: list[str | Path] = [*prefix, ours, "agent", "doctor", "--json", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    findings = {one["subject"]: one for one in json.loads(done.stdout)["findings"]}
    verdicts = {name.removeprefix("headers: "): one["verdict"] for name, one in findings.items() if "headers:" in name}
    assert verdicts == found
    assert done.returncode == status
    if found.get("socket") in ("bad", "note"):
        assert findings["headers: socket"]["text"] == "CAP_NET_RAW, CAP_SYS_PTRACE missing in this process"


# --- addresses as others see them ---------------------------------------------------------------------


def test_addresses_are_told_as_others_see_them(make_agent: Callable[..., Agent], collector: Collector) -> None:
    backend = firefly_backend(collector) + 'public_addresses = {"10.0.0.5" = "192.0.2.5"}\n'
    agent = make_agent(backend)
    with AgentClient(agent.socket) as client:
        client.announce([start(key=FlowKey.of("10.0.0.5", 1, "192.0.2.9", 2))])
    assert collector.events(1)[0].key.src == "192.0.2.5"


def test_no_more_fireflies_leave_in_a_second_than_are_allowed(
    make_agent: Callable[..., Agent], collector: Collector
) -> None:
    agent = make_agent(firefly_backend(collector) + "max_per_second = 50\n")
    events = [start(key=FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094)) for port in range(1, 31)]
    began = time.monotonic()
    with AgentClient(agent.socket) as client:
        assert client.send(events)
    collector.wait(30)
    assert time.monotonic() - began >= 0.5  # less what may leave in the first moment


def test_stun_servers_are_asked(make_agent: Callable[..., Agent], collector: Collector) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as refusing,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        for one in (refusing, server):
            one.bind(("127.0.0.1", 0))
            one.settimeout(10)
        names = [f"127.0.0.1:{one.getsockname()[1]}" for one in (refusing, server)]
        backend = f"{firefly_backend(collector)}stun = {names}\n"
        agent = make_agent(backend, started=False)
        agent.start_without_waiting()
        request, client_address = refusing.recvfrom(2048)
        refusal = bytes.fromhex("0009000a 00000401 4e6f206f6e65 0000")  # section 14.8
        refusing.sendto(b"\1\x11" + len(refusal).to_bytes(2, "big") + request[4:20] + refusal, client_address)
        request, client_address = server.recvfrom(2048)
        assert (request[:2], request[4:8]) == (b"\0\1", bytes.fromhex("2112a442"))
        # RFC 8489, section 14.2: 192.0.2.1, port 32853, under the magic cookie.
        attribute = bytes.fromhex("00200008 0001a147 e112a643")
        # What is no answer to this request is passed over (section 6.3).
        server.sendto(b"junk", client_address)
        server.sendto(b"\1\1\0\0" + request[4:8] + bytes(12), client_address)
        server.sendto(b"\1\1" + len(attribute).to_bytes(2, "big") + request[4:20] + attribute, client_address)
    agent.start_waiting()
    wait_for(lambda: "127.0.0.1 is seen from outside as 192.0.2.1" in agent.log.read_text(), what="an answer")
    assert "the STUN server refuses: 401 'No one" in agent.log.read_text()
    with AgentClient(agent.socket) as client:
        client.announce([start(key=FlowKey.of("127.0.0.1", 1, "192.0.2.9", 2))])
    assert collector.events(1)[0].key.src == "192.0.2.1"


def test_an_event_that_overtakes_its_start_is_put_right() -> None:
    table = FlowTable(max_users=10, idle=seconds(100))
    assert not table.apply(end(transfer_id="a"), NOON)
    assert [one.event.state for one in table.apply(start(transfer_id="a"), NOON)] == [FlowState.START, FlowState.END]
    timed = msgspec.structs.replace(end(), end_time=NOON + seconds(2))
    assert not table.apply(timed, NOON)
    begun = msgspec.structs.replace(start(), start_time=NOON + seconds(1))
    assert [one.users for one in table.apply(begun, NOON)] == [1, 0]
    assert len(table) == 0
    # An end that says nothing of itself belongs to nobody: the next transfer of the connection goes on.
    assert not table.apply(end(), NOON)
    assert len(table.apply(start(), NOON)) == 1
    # One whose moment has passed neither.
    assert not table.apply(end(transfer_id="b", key=KEY.reversed()), NOON)
    assert len(table.apply(start(transfer_id="b", key=KEY.reversed()), NOON + seconds(2))) == 1
    assert table.totals()["put_in_order"] == 2


def test_starts_beyond_the_bound_are_refused_counted_and_said_once(
    make_agent: Callable[..., Agent], collector: Collector
) -> None:
    agent = make_agent(firefly_backend(collector), more="[table]\nmax_transfers = 2")
    with AgentClient(agent.socket) as client:
        for port in range(1, 6):
            client.announce([start(key=FlowKey.of("2001:db8::1", port, "2001:db8::2", 1094))])
    assert agent.status()["table"]["transfers"] == 2
    assert agent.status()["table"]["table_full"] == 3
    assert agent.log.read_text().count("2 transfers are under way: what starts beyond is refused") == 1


def test_the_newest_tag_wins_and_the_conflict_is_counted() -> None:
    table = FlowTable(max_users=10, idle=seconds(100))
    table.apply(start(), NOON)
    (change,) = table.apply(start(ANALYSIS), NOON)
    assert (change.mark, table.totals()["tag_conflicts"]) == (ANALYSIS, 1)


def test_every_firefly_of_a_burst_is_whole(make_agent: Callable[..., Agent], collector: Collector) -> None:
    agent = make_agent(firefly_backend(collector))
    lines = b"".join(b"start tcp 2001:db8::1 %d 2001:db8::2 9 2 15\n" % port for port in range(1, 20_001))
    with agent.pipe.open("wb", buffering=0) as pipe:
        for at in range(0, len(lines), 65_536):
            pipe.write(lines[at : at + 65_536])
    found = collector.wait(20_000, 30)
    assert sorted(firefly.decode(one).event.key.src_port for one in found) == list(range(1, 20_001))
    assert datetime.now(UTC) > min(one.start_time for one in collector.events(20_000) if one.start_time)
