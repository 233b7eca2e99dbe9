"""FTS's messages about finished transfers: what is read of them, and that none is lost between broker and file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scitags_core.cli.main import main
from scitags_core.registry_client import built_in
from scitags_fts.completions import CompletionError, CompletionReader
from scitags_fts.stomp_reader import TOPIC, StompReader, Subscription
from scitags_fts.stomp_reader import Broker as Address
from tests.fts.broker import Broker, why_not

SECONDS = 60.0


def message(number: int = 0, **changes: Any) -> bytes:
    """As FTS sends it: numbers as numbers, EOT behind."""
    content = {
        "tr_id": f"2026-11-23-1200__a__b__{number}__x",
        "job_id": "4d964812-2576-58e0-92d0-a2ef2e24afac",
        "file_id": number,
        "vo": "atlas",
        "src_url": f"davs://a.example:443/x/{number}",
        "dst_url": f"davs://b.example:443/y/{number}",
        "src_hostname": "a.example",
        "dst_hostname": "b.example",
        "timestamp_tr_st": 1795435200000,
        "timestamp_tr_comp": 1795435202500,
        "tr_bt_transfered": 10565043,
        "t_final_transfer_state": "Ok",
        "t__error_message": "",
        "file_metadata": {"activity": "Production Input"},
        "scitag": 143,
        "user_dn": "/CN=somebody",
    }
    return json.dumps({**content, **changes}).encode() + b"\x04"


@pytest.fixture
def reader() -> CompletionReader:
    return CompletionReader(built_in().registry)


def test_what_is_read(reader: CompletionReader) -> None:
    found = reader.read(message(7))
    assert (found.scitag, found.experiment, found.activity) == (143, "atlas", "Production Input")
    assert (found.octets, found.duration, found.state) == (10565043, 2.5, "Ok")
    assert (found.source, found.dst, found.file_id) == ("davs://a.example:443/x/7", "b.example", 7)
    assert found.start_time == datetime.fromtimestamp(1795435200, UTC)
    assert found.fts_activity == "Production Input"


@pytest.mark.parametrize("untagged", [0, None, "", "0"])
def test_an_untagged_transfer(reader: CompletionReader, untagged: object) -> None:
    found = reader.read(message(scitag=untagged))
    assert (found.scitag, found.experiment_id, found.experiment) == (None, None, None)


def test_numbers_as_text_and_times_that_are_missing(reader: CompletionReader) -> None:
    found = reader.read(message(scitag="143", tr_bt_transfered="5", timestamp_tr_st="1466632862284.000", activity="x"))
    assert (found.scitag, found.octets, found.fts_activity) == (143, 5, "x")
    assert reader.read(message(timestamp_tr_comp=0, file_metadata=None)).duration is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\x04", "is no JSON object"),
        (b"[]", "is no JSON object"),
        (message(tr_id=""), "tr_id is missing"),
        (message(src_url=5), "src_url 5 is no text"),
        (message(scitag=64), "scitag: .*64"),
        (message(scitag="x"), "scitag 'x' is no number"),
        (message(tr_bt_transfered=-1), "tr_bt_transfered -1 is no number from 0 on"),
        (message(tr_bt_transfered=True), "tr_bt_transfered True is no number"),
        (message(timestamp_tr_st=1 << 62), "out of range"),
    ],
)
def test_what_is_no_such_message_is_named(reader: CompletionReader, content: bytes, reason: str) -> None:
    with pytest.raises(CompletionError, match=reason):
        reader.read(content)


# --- with the real broker ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    missing = why_not()
    if missing:
        pytest.skip(f"needs {missing}")
    one = Broker(tmp_path_factory.mktemp("broker"))
    yield one
    one.close()


class Listening:
    """A reader in a thread, and what it was given."""

    def __init__(self, broker: Broker, name: str, write: Callable[[list[bytes]], None] | None = None) -> None:
        self.taken: list[bytes] = []

        def keep(messages: Any) -> None:
            if write is not None:
                write(list(messages))
            self.taken += messages

        self.reader = StompReader(
            Address("127.0.0.1", broker.port), Subscription(f"{TOPIC}.{name}", f"tests-{name}"), keep
        )
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.wait(lambda: self.reader.counters["connections"] > 0 or self.failure is not None)

    def _run(self) -> None:
        try:
            self.reader.run()
        except OSError as error:
            self.failure = error

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, (len(self.taken), self.reader.counters)
            time.sleep(0.02)

    def stop(self) -> None:
        self.reader.stop()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


def numbers(taken: list[bytes]) -> list[int]:
    return [json.loads(one[:-1])["file_id"] for one in taken]


def test_what_comes_while_nobody_listens_is_kept(broker: Broker) -> None:
    Listening(broker, "away").stop()
    broker.send([message(number) for number in range(500)], f"{TOPIC}.away")
    listening = Listening(broker, "away")
    listening.wait(lambda: len(listening.taken) >= 500)
    listening.stop()
    assert numbers(listening.taken) == list(range(500))
    # All was acknowledged: nothing comes again.
    again = Listening(broker, "away")
    time.sleep(0.5)
    again.stop()
    assert again.taken == []


def test_a_broker_that_is_killed_loses_none(broker: Broker) -> None:
    listening = Listening(broker, "killed")
    broker.send([message(number) for number in range(300)], f"{TOPIC}.killed")
    listening.wait(lambda: len(listening.taken) >= 100)
    broker.kill()
    time.sleep(1)
    broker.start()
    broker.send([message(number) for number in range(300, 600)], f"{TOPIC}.killed")
    listening.wait(lambda: len(set(numbers(listening.taken))) >= 600)
    time.sleep(0.3)
    listening.stop()
    assert sorted(numbers(listening.taken)) == list(range(600))
    assert listening.reader.counters["connections"] == 2


def test_what_cannot_be_written_comes_again(broker: Broker) -> None:
    Listening(broker, "full").stop()
    broker.send([message(number) for number in range(50)], f"{TOPIC}.full")

    def full(_: list[bytes]) -> None:
        raise OSError(28, "No space left on device")

    refusing = Listening(broker, "full", full)
    refusing.wait(lambda: refusing.failure is not None)
    refusing.stop()
    listening = Listening(broker, "full")
    listening.wait(lambda: len(listening.taken) >= 50)
    listening.stop()
    assert numbers(listening.taken) == list(range(50))


def test_the_command_is_killed_and_none_is_lost(broker: Broker, tmp_path: Path) -> None:
    output, destination = tmp_path / "completions.jsonl", f"{TOPIC}.command"
    command = [
        *(str(Path(sys.executable).parent / "scitags"), "fts", "completions", "--broker", f"127.0.0.1:{broker.port}"),
        *("--name", "tests-command", "--destination", destination, "--output", str(output)),
    ]
    Listening(broker, "command").stop()
    sent = 3000
    sender = threading.Thread(target=broker.send, args=([message(n) for n in range(sent)], destination))
    sender.start()
    for round_ in range(4):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + SECONDS
        before = lines(output)
        if round_ < 3:
            while lines(output) == before and lines(output) < sent:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
            process.communicate()
        else:
            while len(found(output)) < sent:
                assert time.monotonic() < deadline, len(found(output))
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=SECONDS)[1].decode()
            assert process.returncode == 0, said
            assert '"refused"' not in said
    sender.join()
    assert found(output) == set(range(sent))


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def found(path: Path) -> set[int]:
    """A killed reader may leave a piece of a line; what it had not acknowledged stands again behind it."""
    numbers = set()
    for line in path.read_bytes().split(b"\n"):
        try:
            numbers.add(json.loads(line)["file_id"])
        except (ValueError, KeyError):
            continue
    return numbers


def test_rubbish_is_told_and_stands_in_nobody_s_way(
    broker: Broker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Listening(broker, "rubbish").stop()
    broker.send([message(1), b"rubbish", message(scitag=64), message(2)], f"{TOPIC}.rubbish")
    output = tmp_path / "completions.jsonl"
    arguments = ["--broker", f"127.0.0.1:{broker.port}", "--name", "tests-rubbish", "--output", str(output)]
    assert main(["fts", "completions", *arguments, "--destination", f"{TOPIC}.rubbish", "--count", "4"]) == 0
    assert sorted(found(output)) == [1, 2]
    said = capfd.readouterr().err
    assert "refused: 'rubbish' is no JSON object" in said
    assert '"refused":2' in said.replace(" ", "")


def test_a_bad_broker_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("", "h:0", "h:x", ":1"):
        assert main(["fts", "completions", "--broker", bad, "--name", "x"]) == 1
        assert "is not HOST or HOST:PORT" in capsys.readouterr().err
