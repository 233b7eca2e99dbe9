"""The files that StoRM WebDAV, its nginx and systemd need, as text.

StoRM writes start and end of what it moves itself. Of what it leaves to nginx (storm.nginx.enabled, downloads) it
writes the start, and nginx has to write the end: a line of its access log, written when the request is over.
"""

from __future__ import annotations

import msgspec

from scitags_core.errors import InvalidValue, shown

# StoRM's source has it as a constant.
STORM_PIPE = "/var/run/flowd"
AGENT_UNIT = "scitags-agent.service"
STORM_UNIT = "storm-webdav.service"
NGINX_UNIT = "nginx.service"
ENABLED = "STORM_WEBDAV_SCITAGS_ENABLED"
NGINX_ENABLED = "STORM_WEBDAV_NGINX_ENABLED"
# What StoRM answers to nginx with, for the request of a tagged download.
EXPERIMENT = "$upstream_http_x_scitag_expid"
ACTIVITY = "$upstream_http_x_scitag_actid"
FORMAT = "scitags"
IS_TAGGED = "$scitags_is_tagged"
LINE = ("end", "tcp", "$server_addr", "$server_port", "$remote_addr", "$remote_port", EXPERIMENT, ACTIVITY)
GROUP = "scitags"
DEFAULT_LOG = "/var/log/nginx/access.log"

_WHITE_OR_QUOTED = set(" \t\n;{}\"'\\")


class Wishes(msgspec.Struct, frozen=True):
    """with_nginx: downloads go by nginx; log: its access log, which a location with another log must name again."""

    with_nginx: bool = False
    log: str = DEFAULT_LOG
    group: str = GROUP

    def __post_init__(self) -> None:
        for name, value in (("log", self.log), ("group", self.group)):
            if not value or not _WHITE_OR_QUOTED.isdisjoint(value):
                raise InvalidValue(f"{name} {shown(value)} cannot stand in a configuration")


STORM_FILE = f"/etc/systemd/system/{STORM_UNIT}.d/scitags.conf"
NGINX_ORDER_FILE = f"/etc/systemd/system/{NGINX_UNIT}.d/scitags.conf"
REOPEN_FILE = f"/etc/systemd/system/{AGENT_UNIT}.d/nginx.conf"
NGINX_FILE = "/etc/nginx/conf.d/scitags-storm.conf"
LOCATION_FILE = "/etc/nginx/snippets/scitags-storm.conf"


def files(wishes: Wishes) -> dict[str, str]:
    """What to put where, by path."""
    found = {STORM_FILE: _storm_unit(wishes)}
    if wishes.with_nginx:
        found |= {
            NGINX_FILE: _nginx(),
            LOCATION_FILE: _location(wishes),
            NGINX_ORDER_FILE: f"[Unit]\nWants={AGENT_UNIT}\nAfter={AGENT_UNIT}\n",
            REOPEN_FILE: _reopen(),
        }
    return found


def _storm_unit(wishes: Wishes) -> str:
    lines = [
        "[Unit]",
        "# A StoRM that finds no pipe makes a regular file in its place.",
        f"Wants={AGENT_UNIT}",
        f"After={AGENT_UNIT}",
        "",
        "[Service]",
        f"SupplementaryGroups={wishes.group}",
        f'Environment="{ENABLED}=true"',
    ]
    if wishes.with_nginx:
        lines.append(f'Environment="{NGINX_ENABLED}=true"')
    return "\n".join(lines) + "\n"


def _nginx() -> str:
    return (
        "# Both numbers, or no line: 0 is an activity like any other.\n"
        f'map "{EXPERIMENT}:{ACTIVITY}" {IS_TAGGED} {{\n'
        "    default 0;\n"
        '    "~^[0-9]+:[0-9]+$" 1;\n'
        "}\n"
        f"log_format {FORMAT} '{' '.join(LINE)}';\n"
    )


def _location(wishes: Wishes) -> str:
    return (
        "# In StoRM's internal location, in place of other lines that write to the pipe:\n"
        "#     location /.storm-webdav/internal/get { ... include snippets/scitags-storm.conf; }\n"
        f"access_log {STORM_PIPE} {FORMAT} if={IS_TAGGED};\n"
        "# With a log of its own a location has none of those above it.\n"
        f"access_log {wishes.log};\n"
    )


def _reopen() -> str:
    return (
        "# The agent makes its pipe anew; nginx would go on writing to the old one, which nobody reads.\n"
        "[Service]\n"
        f"ExecStartPost=-+/bin/systemctl kill --kill-who=main --signal=USR1 {NGINX_UNIT}\n"
    )
