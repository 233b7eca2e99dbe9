"""`scitags xrootd`: what it prints is right, and what is wrong is found, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scitags_core.cli.main import main
from scitags_core.registry_client import built_in
from scitags_xrootd import check, directives
from scitags_xrootd.config import SILENT_PMARK
from scitags_xrootd.server import HEADER_BY_PMARK, Version, parse_version

REGISTRY = built_in().registry
OLD, NEW = (5, 5, 3), (5, 8, 1)
PLUGIN = """xrd.protocol XrdHttp:443 libXrdHttp.so
xrd.tls cert key
xrootd.fslib ++ libXrdScitags.so
http.exthandler xrdtpc libXrdScitags.so
""" + "".join(f"http.header2cgi {name} scitag.flow\n" for name in ("SciTag", "Scitag", "scitag", "SCITAG"))
PMARK = "xrootd.pmark use firefly scitag\nxrootd.pmark ffdest 127.0.0.1:10514\nxrootd.pmark domain any\n"
SILENT = "".join(f"{line}\n" for line in SILENT_PMARK)
HTTP = "xrd.protocol http:80 /usr/lib64/libXrdHttp-5.so\n"


def found(text: str, version: Version = NEW) -> list[str]:
    lines = list(directives.parse(text, "file"))
    return [str(one) for one in check.check(lines, REGISTRY, version, resolve=lambda name: name != "away.example")]


@pytest.mark.parametrize("version", [OLD, (5, 6, 2), (5, 6, 5), NEW, (6, 2, 1)])
@pytest.mark.parametrize("pmark", [False, True])
def test_what_is_printed_has_nothing_wrong(
    version: Version, pmark: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = ".".join(map(str, version))
    defsfile = tmp_path / "names.json"
    assert main(["xrootd", "defsfile"]) == 0
    defsfile.write_text(capsys.readouterr().out)
    rules = ["--path=/atlas=atlas:Production Input", "--path=/atlas/user=ATLAS", "--vo=cms=cms", "--default=dune"]
    how = ["--pmark", "--defsfile", str(defsfile)] if pmark else ["--socket", "/run/agent"]
    assert main(["xrootd", "config", "--server", number, *rules, *how]) == 0
    lines = HTTP + "xrd.tls cert key\n" + capsys.readouterr().out
    (tmp_path / "xrootd.cfg").write_text(lines)
    # What an older server cannot do, and what xrootd.pmark cannot, is said of any such lines.
    known = ("tags above 511 for none", "a client of several VOs")
    assert [one for one in found(lines, version) if not any(text in one for text in known)] == []
    assert main(["xrootd", "check", "--server", number, "--offline", "--json", str(tmp_path / "xrootd.cfg")]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert len(findings) == (pmark + (pmark and version < (5, 6, 3)))


@pytest.mark.parametrize(
    "version", [OLD, (5, 6, 2), (5, 6, 3), (5, 6, 4), (5, 6, 5), (5, 7, 0), NEW, (6, 0, 0), (6, 2, 1)]
)
def test_each_release_gets_the_lines_by_which_it_hands_the_header_on(
    version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["xrootd", "config", "--server", ".".join(map(str, version))]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line for line in lines if "xrootd.pmark" in line] == list(SILENT_PMARK if version >= (5, 6, 3) else ())
    assert sum("http.header2cgi" in line for line in lines) == (0 if version >= (5, 6, 3) else 4)
    assert ("can crash in third-party copies" in printed.err) == ((5, 6, 3) <= version < (5, 6, 5))


def test_lines_for_a_release_that_is_not_known_are_right_in_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no xrootd to ask
    assert main(["xrootd", "config"]) == 0
    printed = capsys.readouterr()
    assert "right in every release" in printed.err
    text = HTTP + "xrd.tls cert key\n" + printed.out
    for version in (OLD, (5, 6, 2), (5, 6, 5), NEW, (6, 2, 1)):
        assert found(text, version) == []


def test_names_are_of_one_word_in_a_defsfile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xrootd", "defsfile"]) == 0
    document = json.loads(capsys.readouterr().out)
    tags = {(one["expId"], activity["activityId"]) for one in document["experiments"] for activity in one["activities"]}
    assert tags == {(tag.experiment, tag.activity) for tag in REGISTRY.tags()}
    names = [activity["activityName"] for one in document["experiments"] for activity in one["activities"]]
    assert "Production_Input" in names
    assert not any(" " in name for name in names)


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        ("all.export /\n", NEW, "file: error: nothing tells the agent"),
        ("scitags.default 2 15\n" + PMARK, NEW, "file:1: error: scitags lines, but no plug-in"),
        ("xrootd.fslib libXrdScitags.so\n", NEW, "file:1: error: the plug-in stands on its own"),
        (PLUGIN + PMARK, NEW, "file:9: warning: an agent that hears"),
        (
            PLUGIN,
            HEADER_BY_PMARK,
            "file:5: error: requests by HTTP go untagged: this server reads the header SciTag itself",
        ),
        (
            PLUGIN,
            NEW,
            "http.header2cgi has no effect on it: write xrootd.pmark use firefly noscitag, xrootd.pmark ffdest",
        ),
        (HTTP + "xrootd.fslib ++ libXrdScitags.so\n", NEW, "file:1: error: requests by HTTP go untagged"),
        (PLUGIN + "xrootd.pmark domain any\n", NEW, "file:9: error: requests by HTTP go untagged"),
        (PLUGIN + SILENT + "xrootd.pmark use nofirefly\n", NEW, "file:12: error: requests by HTTP go untagged"),
        (PLUGIN + SILENT, OLD, "ok"),
        (PLUGIN + SILENT, NEW, "ok"),
        (PLUGIN + "xrootd.pmark domain any use firefly noscitag\n", NEW, "ok"),
        (
            PLUGIN + "xrootd.pmark domain any use firefly noscitag\n",
            OLD,
            "file:9: error: there is no ffdest: xrootd does",
        ),
        (PLUGIN + SILENT.replace("domain any", "trace"), NEW, "file:9: note: xrootd looks the client's name up"),
        (PLUGIN + SILENT + "xrootd.pmark use scitag\n", NEW, "file:9: warning: an agent that hears"),
        (PLUGIN + SILENT + "xrootd.pmark map2exp default cms\n", NEW, "file:9: warning: an agent that hears"),
        (PLUGIN + SILENT, (5, 6, 4), "file:9: warning: this server can crash in third-party copies by HTTP"),
        (PLUGIN + "http.exthandler xrdtpc libXrdHttpTPC-5.so\n", NEW, "file:9: warning: third-party copies by HTTP"),
        (PLUGIN.replace("xrd.tls cert key\n", ""), OLD, "file:3: note: this server loads handlers"),
        (PLUGIN + "scitags.tag 5\n", NEW, "file:9: error: there is no directive scitags.tag; there are default, map"),
        (PLUGIN + "scitags.map path /x \\\n atlsa 3\n", NEW, "file:9: error: no experiment is called 'atlsa'"),
        (PLUGIN + "scitags.map2act atlas default Production Imput\n", NEW, "no activity of atlas is called"),
        (PLUGIN + "scitags.default 2 63\n", NEW, "file:9: error: no activity of atlas has the id 63"),
        (PLUGIN + "scitags.map2exp path /x\n", NEW, "file:9: error: scitags.map2exp lacks words: 'path /x'"),
        (PLUGIN + "scitags.registry /nowhere\n", NEW, "file:9: error: /nowhere: No such file or directory"),
        (
            PLUGIN.replace("header2cgi Scitag", "header2cgi X"),
            OLD,
            "header Scitag go untagged, as xrootd compares case",
        ),
        (
            PLUGIN.replace("SciTag scitag.flow", "SciTag scitag"),
            (5, 6, 2),
            "the header SciTag becomes scitag, not scitag.flow",
        ),
        (HTTP + PMARK, OLD, "file:1: error: requests by HTTP that write their header SciTag or Scitag"),
        (PMARK, OLD, "file:1: warning: this server takes tags above 511 for none"),
        (PMARK.replace(" any", " remote"), NEW, "file:3: warning: domain remote: flows with private addresses"),
        (PMARK.replace("xrootd.pmark domain any\n", ""), NEW, "file:1: warning: domain remote, the default"),
        (PMARK.replace(" any", " all of it"), NEW, "ok"),
        (PMARK.replace(" any", " each"), NEW, "file:3: error: domain 'each' is none of any, local and remote"),
        (PMARK.replace("127.0.0.1:10514", "away.example"), NEW, "file:2: error: ffdest away.example has no address"),
        (PMARK.replace("127.0.0.1:10514", "[::1]:10514"), NEW, "file:2: error: ffdest [::1]:10514: an IPv6 address"),
        (
            PMARK.replace("127.0.0.1:10514", "a:1,b,origin"),
            NEW,
            "file:2: error: ffdest a is not used: only the last one, b",
        ),
        (
            "xrootd.pmark use firefly\nxrootd.pmark domain any\n",
            OLD,
            "file:1: error: there is no ffdest: xrootd does not",
        ),
        (
            "xrootd.pmark use firefly\nxrootd.pmark domain any\n",
            NEW,
            "no ffdest: fireflies go to the clients' hosts alone",
        ),
        (PMARK + "xrootd.pmark ffecho 60\n", NEW, "file:4: note: ffecho does nothing"),
        (PMARK + "xrootd.pmark use flowlabel\n", NEW, "file:4: note: use flowlabel does nothing"),
        (PMARK + "xrootd.pmark use noscitag\n", NEW, "file:4: error: use noscitag"),
        (PMARK + "xrootd.pmark map2exp path /x atlas\n", NEW, "file:4: error: maps without a defsfile"),
        (PMARK + "xrootd.pmark defsfile fail /x\n", (5, 7, 0), "file:4: error: defsfile fail: this server refuses"),
        (
            PMARK + "xrootd.pmark defsfile curl https://x\nxrootd.pmark map2exp default cms\n",
            NEW,
            "asked of the network",
        ),
        (PMARK + "xrootd.pmark map2exp default Atlas\n", NEW, "written 'Atlas' (it is 'atlas': xrootd compares case)"),
        (PMARK + "xrootd.pmark map2act atlas default Production Input\n", NEW, "xrootd takes the first word alone"),
        (
            PMARK + "xrootd.pmark map2act atlas path /x default\n",
            NEW,
            "map2act knows default, role and user, not 'path'",
        ),
    ],
)
def test_what_is_wrong_is_found(text: str, version: Version, expected: str) -> None:
    lines = found(text, version)
    assert any(expected in line for line in lines) or (expected == "ok" and not lines), lines


def test_a_registry_that_has_drifted(tmp_path: Path) -> None:
    (tmp_path / "api.json").write_text(
        '{"version": 1, "experiments": [{"expName": "atlas", "expId": 7, "activities": []}]}'
    )
    lines = found(PLUGIN + f"scitags.registry {tmp_path}/api.json\n")
    assert [line for line in lines if "is another version of the registry" in line]
    # Names count as the server would read them.
    lines = found(PMARK + f"xrootd.pmark defsfile {tmp_path}/api.json\nxrootd.pmark map2exp default cms\n")
    assert any("no experiment of the defsfile is written 'cms'" in line for line in lines)


def test_files_that_a_file_goes_on_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "first").write_text(f"all.export /\ncontinue {tmp_path}/more\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "second").write_text("# nothing\n\nscitags.default 2\n")
    assert main(["xrootd", "check", str(tmp_path / "first")]) == 1
    assert f"{tmp_path}/more/second:3: error: scitags.default lacks words: '2'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "--path", "atlas=atlas"], "--path 'atlas=atlas': 'atlas' is not absolute"),
        (["config", "--path", "/atlas"], "--path '/atlas' is not of the form PATH=EXPERIMENT[:ACTIVITY]"),
        (["config", "--default", "atlsa"], "no experiment is called 'atlsa'"),
        (["config", "--server", "new"], "'new' is no version of XRootD: give it as 5.5.3"),
        (
            ["config", "--pmark", "--path=/a=cms:Data Challenge", "--path=/b=cms:default"],
            "'default' is the second of cms",
        ),
        (["check", "/nowhere"], "/nowhere: No such file or directory"),
    ],
)
def test_what_is_asked_wrongly_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xrootd", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_versions() -> None:
    assert [parse_version(text) for text in ("v5.5.3", "5.7", "6.0.1-rc1")] == [(5, 5, 3), (5, 7, 0), (6, 0, 1)]
