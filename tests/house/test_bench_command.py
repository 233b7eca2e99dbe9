"""`python -m bench`: what it says of the benches, and of options that none has."""

from __future__ import annotations

import pytest

from bench.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--help"], "random_packets"), (["agent", "--help"], "The agent under load"), (["pipe", "-h"], "named pipe")],
)
def test_help(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["agent", "--rounds", "3"], "bench 'agent' takes no options, but was given '--rounds'"),
        (["--rounds", "3"], "--rounds is an option of one bench"),
        (["agent", "pipe", "--rounds", "3"], "--rounds is an option of one bench"),
        (["agents"], "no bench 'agents'; there are: agent, "),
    ],
)
def test_what_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert said in str(refused.value)
