"""What `scitags storm config` prints, `scitags storm check` accepts; and what goes wrong in practice it finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scitags_core.cli import main
from scitags_storm import nginx_config

ROOT = Path(__file__).parents[2]
STORM_UNIT = "[Unit]\nAfter=network.target\n[Service]\nUser=storm\nExecStart=/bin/true\n"
NGINX = """
events {}
http {
    # the site's own
    log_format main '$remote_addr "$request" $status';
    include /etc/nginx/conf.d/*.conf;
    server {
        listen [::]:8443;
        location /.storm-webdav/internal/get { internal; alias /; LOG }
        location / { proxy_pass http://127.0.0.1:8086; }
    }
}
"""
OURS = "include snippets/scitags-storm.conf;"
STORMS_OWN = "if ($upstream_http_x_scitag_actid) { access_log /var/run/flowd flowd; }"
STORMS_FORMAT = (
    "log_format flowd 'end tcp $server_addr $server_port $remote_addr $remote_port "
    "$upstream_http_x_scitag_actid $upstream_http_x_scitag_expid';\n"
)
PIPE = "run/scitags/flowd"


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host as docs/install.md makes it, with StoRM and nginx, and nothing yet of what config prints."""
    root = tmp_path / "host"
    root.mkdir()
    put(root, "etc/scitags/agent.toml", (ROOT / "packaging/examples/storm.toml").read_text())
    agent_unit = (ROOT / "packaging/systemd/scitags-agent.service").read_text()
    put(root, "etc/systemd/system/scitags-agent.service", agent_unit)
    put(root, "usr/lib/systemd/system/storm-webdav.service", STORM_UNIT)
    put(root, "usr/lib/systemd/system/nginx.service", "[Unit]\nAfter=network.target\n[Service]\nExecStart=/bin/true\n")
    put(root, "etc/nginx/nginx.conf", NGINX.replace("LOG", OURS))
    put(root, "etc/passwd", f"root:x:0:0::/:/bin/sh\nstorm:x:{os.getuid() + 4000}:4000::/:/bin/sh\n")
    put(root, "etc/group", f"storm:x:4000:\nscitags:x:{os.getgid()}:\n")
    (root / "run/scitags").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "run/flowd").symlink_to("scitags/flowd")
    os.mkfifo(root / PIPE)
    (root / PIPE).chmod(0o660)
    for directory in (root, root / "run", root / "run/scitags"):
        directory.chmod(0o755)
    return root


def configure(host: Path, *options: str) -> None:
    assert main(["storm", "config", "--into", str(host), *options]) == 0


def check(host: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """Its problems and its notes."""
    capsys.readouterr()
    status = main(["storm", "check", "--root", str(host), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (1 if found["problems"] else 0)
    return found["problems"], found["notes"]


@pytest.mark.parametrize("options", [(), ("--nginx",), ("--nginx", "--access-log", "/srv/log")])
def test_what_is_printed_is_accepted(host: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    configure(host, *options)
    assert check(host, capsys) == ([], [])


def test_what_is_printed_is_what_is_written(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(host, "--nginx")
    capsys.readouterr()
    assert main(["storm", "config", "--nginx"]) == 0
    parts = capsys.readouterr().out.split("# --- ")[1:]
    assert len(parts) == 5
    for part in parts:
        path, _, text = part.partition("\n")
        assert (host / path.lstrip("/")).read_text().strip() == text.strip()


def test_people_are_told_what_is_good_and_what_is_not(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storm", "check", "--root", str(host)]) == 1
    told = capsys.readouterr()
    assert "good: /etc/scitags/agent.toml reads what StoRM writes to" in told.out
    assert "scitags: storm.scitags.enabled is off" in told.err


def test_a_host_before_it_is_configured(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems, _ = check(host, capsys)
    assert [one.partition(":")[0] for one in problems] == [
        "StoRM's user storm may not write to /run/scitags/flowd (mode 0660, group " + f"{os.getgid()})",
        "storm.scitags.enabled is off",
        "storm-webdav.service may start before scitags-agent.service, and make a regular file where the pipe belongs",
    ]


def test_storms_own_recipe_for_nginx(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(host, "--nginx")
    put(host, "etc/nginx/nginx.conf", NGINX.replace("LOG", STORMS_OWN))
    put(host, "etc/nginx/conf.d/flowd.conf", STORMS_FORMAT)
    problems, _ = check(host, capsys)
    for_zero, swapped = problems
    assert for_zero.endswith("`if ($upstream_http_x_scitag_actid)` is false for 0, so that such a transfer never ends")
    assert swapped == (
        "nginx, access_log /var/run/flowd flowd: activity and experiment are swapped: $upstream_http_x_scitag_expid "
        "belongs before $upstream_http_x_scitag_actid"
    )


@pytest.mark.parametrize(
    ("change", "to", "why"),
    [
        ("$server_addr $server_port $remote_addr $remote_port", "$remote_addr $remote_port $server_addr $server_port",
         "source and destination are swapped"),
        ("'end tcp", "'start tcp", "state is start, not end"),
        ("'end tcp ", "'end ", "a line has 7 fields"),
        ("$remote_port", "$server_port", "destination port is $server_port, not $remote_port"),
        ("log_format scitags ", "log_format other ", "there is no log_format scitags"),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong(host: Path, change: str, to: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(host, "--nginx")
    path = host / "etc/nginx/conf.d/scitags-storm.conf"
    text = path.read_text()
    assert change in text
    path.write_text(text.replace(change, to))
    (problem,), _ = check(host, capsys)
    assert why in problem


@pytest.mark.parametrize("option", ["buffer=32k", "gzip", "flush=5s"])
def test_lines_that_are_held_back(host: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(host, "--nginx")
    path = host / "etc/nginx/snippets/scitags-storm.conf"
    path.write_text(path.read_text().replace("scitags if=", f"scitags {option} if="))
    (problem,), _ = check(host, capsys)
    assert "holds lines back" in problem


def test_what_else_goes_wrong(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(host, "--nginx")

    def problem() -> str:
        (one,), _ = check(host, capsys)
        return one

    pipe = host / PIPE
    pipe.unlink()
    assert "is not there: the agent makes it" in problem()
    pipe.write_text("start tcp ::1 1 ::2 2 2 15\n")
    assert "is a regular file, which StoRM makes when it finds no pipe" in problem()
    pipe.unlink()
    pipe.mkdir()
    assert problem() == "/var/run/flowd (/run/scitags/flowd) is no named pipe"
    pipe.rmdir()
    os.mkfifo(pipe)
    pipe.chmod(0o600)
    assert "may not write to /run/scitags/flowd (mode 0600" in problem()
    pipe.chmod(0o660)
    (host / "run/scitags").chmod(0o700)
    assert "may not enter /run/scitags" in problem()
    (host / "run/scitags").chmod(0o755)

    (host / "run/flowd").unlink()
    os.mkfifo(host / "run/flowd")
    (host / "run/flowd").chmod(0o666)
    assert "reads /run/scitags/flowd, and StoRM writes to /var/run/flowd, which is /run/flowd" in problem()
    (host / "run/flowd").unlink()
    (host / "run/flowd").symlink_to("/run/scitags/flowd")

    put(host, "etc/scitags/agent.toml", '[[source]]\nkind = "unix"\n')
    assert 'no source of kind "named_pipe"' in problem()
    put(host, "etc/scitags/agent.toml", "[[source]\n")
    assert problem().startswith("/etc/scitags/agent.toml: ")
    (host / "etc/scitags/agent.toml").unlink()
    assert "no agent is configured" in problem()
    put(host, "etc/scitags/agent.toml", (ROOT / "packaging/examples/storm.toml").read_text())

    dropin = host / "etc/systemd/system/scitags-agent.service.d/nginx.conf"
    dropin.unlink()
    assert "nginx goes on writing to the pipe of an agent" in problem()
    put(host, "etc/systemd/system/scitags-agent.service.d/x.conf", "[Service]\nExecStartPost=/usr/sbin/nginx -s reopen")
    assert check(host, capsys) == ([], [])

    (host / "etc/systemd/system/nginx.service.d/scitags.conf").unlink()
    assert "nginx.service may start before" in problem()
    before = "[Unit]\nBefore=nginx.service storm-webdav.service\n"
    reopen = "[Service]\nExecStartPost=/usr/sbin/nginx -s reopen\n"
    put(host, "etc/systemd/system/scitags-agent.service.d/x.conf", before + reopen)
    assert check(host, capsys) == ([], [])

    put(host, "etc/nginx/nginx.conf", NGINX.replace("LOG", ""))
    assert "nginx writes nothing to /var/run/flowd" in problem()
    (host / "etc/nginx/nginx.conf").unlink()
    assert "/etc/nginx/nginx.conf is not there" in problem()


@pytest.mark.parametrize(
    ("yaml", "environment", "on"),
    [
        ("storm:\n  scitags:\n    enabled: true\n", "", True),
        ("storm:\n  scitags:\n    enabled: false\n", "STORM_WEBDAV_SCITAGS_ENABLED=true", False),
        ("storm:\n  scitags:\n    enabled: ${STORM_WEBDAV_SCITAGS_ENABLED:false}\n",
         "STORM_WEBDAV_SCITAGS_ENABLED=true", True),
        ("storm:\n  voms: x\n", "STORM_WEBDAV_SCITAGS_ENABLED=TRUE", True),
        ("storm:\n  scitags:\n    enabled: false\n", "STORM_SCITAGS_ENABLED=true", True),
        ("", "STORM_WEBDAV_SCITAGS_ENABLED=no", False),
        ("[]", "", False),
    ],
)  # fmt: skip
def test_where_storm_is_switched_on(
    host: Path, yaml: str, environment: str, on: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(host)
    put(host, "etc/storm/webdav/config/application.yml", yaml)
    dropin = host / "etc/systemd/system/storm-webdav.service.d/scitags.conf"
    lines = [line for line in dropin.read_text().splitlines() if "ENABLED" not in line]
    put(host, "etc/default/storm", f"# set here\n{environment}\n")
    dropin.write_text("\n".join([*lines, "EnvironmentFile=-/etc/default/storm", "EnvironmentFile=-/absent"]))
    problems, notes = check(host, capsys)
    assert notes == []
    assert [one.partition(":")[0] for one in problems] == ([] if on else ["storm.scitags.enabled is off"])


def test_a_yaml_that_is_none_is_said(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(host)
    put(host, "etc/storm/webdav/config/application.yml", "a: [")
    (problem,), _ = check(host, capsys)
    assert problem.startswith("/etc/storm/webdav/config/application.yml: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["storm", "config", "--access-log", "/a b"],
        ["storm", "config", "--group", ""],
        ["storm", "config", "--access-log", "/x; } evil"],
        ["storm", "check", "--root", "/nonexistent"],
    ],
)
def test_values_that_cannot_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert arguments[-1] in capsys.readouterr().err or arguments[-1] == ""


def test_units_as_systemd_reads_them(host: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    configure(host, "--nginx")
    # Unknown settings and sections are what it finds; programs and users of the host it does not have.
    for path in (host / "etc/systemd/system").glob("*/*.conf"):
        unit = host / "verify.service"
        unit.write_text(path.read_text() + "\n[Service]\nExecStart=/bin/true\n")
        done = subprocess.run(
            ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False
        )
        said = [line for line in done.stderr.splitlines() if str(unit) in line]
        assert said == [], path


def test_words_of_nginx() -> None:
    text = """a 1; # no; b
    http { log_format x 's "quoted" $a' "; }" ; map "$a:$b" $c { default 0; "~^x{2}$" 1; }
    include *.z; } end ${x}y;"""
    found = nginx_config.directives(text, lambda pattern: [f"from {pattern[0]};", "server { q; }"])
    assert [(one.words, [block[0] for block in one.blocks]) for one in found] == [
        (("a", "1"), []),
        (("http",), []),
        (("log_format", "x", 's "quoted" $a', "; }"), ["http"]),
        (("map", "$a:$b", "$c"), ["http"]),
        (("default", "0"), ["http", "map"]),
        (("~^x{2}$", "1"), ["http", "map"]),
        (("include", "*.z"), ["http"]),
        (("from", "*"), ["http"]),
        (("server",), ["http"]),
        (("q",), ["http", "server"]),
        (("end", "${x}y"), []),
    ]
    endless = nginx_config.directives("include x;", lambda _: ["include x;"])
    assert len(endless) == nginx_config.MAX_DEPTH + 1
    assert nginx_config.directives("a 'no end; b;", lambda _: []) == []
