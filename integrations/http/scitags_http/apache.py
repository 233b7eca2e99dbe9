"""Apache's configuration, and a script for its mod_lua.

A log (also a piped one) comes when a request is over. What Apache lets run before the content is a script: mod_lua's
fixups hook (http://httpd.apache.org/docs/2.4/mod/mod_lua.html). It tells the start, and the log hook the end, both by
datagram to the agent's Unix socket through LuaSocket, or the start by the agent's HTTP API where requests are to wait.
"""

from __future__ import annotations

from importlib.resources import files as resources

import msgspec

from scitags_core.errors import InvalidValue, shown
from scitags_core.flow import PORT_MAX
from scitags_http.agent_link import AGENT_SOCKET
from scitags_http.nginx import API_SOCKET

SCRIPT_FILE = "/etc/apache2/scitags.lua"
SERVER_FILE = "/etc/apache2/conf-available/scitags.conf"
HOST_FILE = "/etc/apache2/scitags-host-{port}.conf"
SCRIPT = "apache.lua"

_UNQUOTED = set(" \t\n\"'\\")


class ApacheWishes(msgspec.Struct, frozen=True):
    """port: of the virtual host, which no variable of Apache's tells for certain; the rest as with nginx."""

    port: int
    agent: str = AGENT_SOCKET
    api: str = API_SOCKET
    waits: bool = False
    script: str = SCRIPT_FILE

    def __post_init__(self) -> None:
        if not 0 < self.port <= PORT_MAX:
            raise InvalidValue(f"port {self.port} is outside 1..{PORT_MAX}")
        for name, value in (("agent socket", self.agent), ("HTTP socket", self.api), ("script", self.script)):
            if not value or not _UNQUOTED.isdisjoint(value):
                raise InvalidValue(f"{name} {shown(value)} cannot stand in Apache's configuration")


def files(wishes: ApacheWishes) -> dict[str, str]:
    """What to put where, by path."""
    return {
        wishes.script: _script(wishes),
        SERVER_FILE: _server(wishes),
        HOST_FILE.format(port=wishes.port): _host(wishes),
    }


def _script(wishes: ApacheWishes) -> str:
    head = (
        f'local AGENT = "{wishes.agent}"  -- datagrams: source unix\n'
        f'local API = "{wishes.api if wishes.waits else ""}"  -- source http; empty: requests do not wait\n\n'
    )
    return head + (resources(__package__) / SCRIPT).read_text(encoding="utf-8")


def _server(wishes: ApacheWishes) -> str:
    return (
        "# a2enmod lua setenvif, a2enconf scitags; apt install lua-socket.\n"
        "LuaScope thread\n"
        f'LuaHookFixups "{wishes.script}" begin\n'
        f'LuaHookLog "{wishes.script}" finish\n'
    )


def _host(wishes: ApacheWishes) -> str:
    return (
        f"# In each virtual host of port {wishes.port}: Include {HOST_FILE.format(port=wishes.port)}\n"
        f'SetEnvIf Server_Addr "^(.+)$" SCITAGS_SERVER=$1 SCITAGS_PORT={wishes.port}\n'
        "# The connection's own peer, whatever mod_remoteip makes of it.\n"
        'SetEnvIfExpr "%{CONN_REMOTE_ADDR} =~ /^(.+)$/" SCITAGS_CLIENT=$1\n'
        'SetEnvIfExpr "%{REMOTE_PORT} =~ /^(.+)$/" SCITAGS_CLIENT_PORT=$1\n'
    )
