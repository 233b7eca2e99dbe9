"""nginx's configuration, with nothing but what it is built with everywhere.

The start is told to the agent's HTTP API by a subrequest, before the content is served: beside the request (mirror),
or while it waits (auth_request). The end is a line of the access log, by datagram to the agent's Unix socket: nginx
writes such logs without waiting, finds the socket of an agent that was started again, and makes no file.
(http://nginx.org/en/docs/http/ngx_http_mirror_module.html, ngx_http_auth_request_module, ngx_http_log_module, syslog)
"""

from __future__ import annotations

import msgspec

from scitags_core.errors import InvalidValue, shown
from scitags_http.agent_link import AGENT_SOCKET

API_SOCKET = "/run/scitags/http.sock"
HTTP_FILE = "/etc/nginx/conf.d/scitags.conf"
SERVER_FILE = "/etc/nginx/snippets/scitags-server.conf"
LOCATION_FILE = "/etc/nginx/snippets/scitags-location.conf"
DEFAULT_LOG = "/var/log/nginx/access.log"

# 65..65535 in decimal.
_SCITAG = "6[5-9]|[7-9][0-9]|[1-9][0-9]{2,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_FLOW = (
    '"id":"$pid.$connection.$connection_requests","application":"nginx","scitag":$scitags_number,'
    '"src":"$scitags_src","src_port":$scitags_src_port,"dst":"$scitags_dst","dst_port":$scitags_dst_port'
)
_FAILURES = "400 401 403 404 405 408 411 413 429 500 502 503 504"
_UNQUOTED = set(" \t\n;{}\"'\\$")


class NginxWishes(msgspec.Struct, frozen=True):
    """Paths of the agent's two sockets and of nginx's usual log; waits: hold a request until its packets are marked."""

    agent: str = AGENT_SOCKET
    api: str = API_SOCKET
    log: str = DEFAULT_LOG
    waits: bool = False

    def __post_init__(self) -> None:
        for name, value in (("agent socket", self.agent), ("HTTP socket", self.api), ("log", self.log)):
            if not value or not _UNQUOTED.isdisjoint(value):
                raise InvalidValue(f"{name} {shown(value)} cannot stand in nginx's configuration")


def files(wishes: NginxWishes) -> dict[str, str]:
    """What to put where, by path."""
    return {HTTP_FILE: _http(wishes), SERVER_FILE: _server(), LOCATION_FILE: _location(wishes)}


def _http(wishes: NginxWishes) -> str:
    ends = [("src", "remote", "server"), ("dst", "server", "remote")]
    maps = "".join(
        f"map $scitags_way $scitags_{end}{suffix} {{ up ${upload}_{part}; default ${download}_{part}; }}\n"
        for end, upload, download in ends
        for suffix, part in (("", "addr"), ("_port", "port"))
    )
    return (
        "# Data goes this way by these methods, and by no others on the client's connection.\n"
        'map $request_method $scitags_way { GET down; PUT up; POST up; PATCH up; default ""; }\n'
        'map $http_scitag $scitags_given { "" $http_transferheaderscitag; default $http_scitag; }\n'
        "# One that cannot be read is told as unknown.\n"
        f'map $scitags_given $scitags_number {{ default 0; "~^({_SCITAG})$" $scitags_given; }}\n'
        'map "$scitags_way:$scitags_given" $scitags_is_told { default 0; "~^[a-z]+:." 1; }\n'
        f"{maps}"
        "# Octets of a body that was sent; those of one that was received nginx does not count.\n"
        "map $scitags_way $scitags_usage { up '{\"received\":$body_bytes_sent}'; "
        "default '{\"sent\":$body_bytes_sent}'; }\n"
        f'log_format scitags escape=none \'{{"state":"end",{_FLOW},"usage":$scitags_usage}}\';\n'
        "# An agent that does not answer is left alone for a while: the second server is never there.\n"
        "upstream scitags_agent {\n"
        f"    server unix:{wishes.api} max_fails=1 fail_timeout=10s;\n"
        f"    server unix:{wishes.api}.none backup;\n"
        "}\n"
    )


def _server() -> str:
    return (
        "# In the server block: include snippets/scitags-server.conf;\n"
        "location = /.scitags/start {\n"
        "    internal;\n"
        "    # The request's body is none of this one's, however large.\n"
        "    client_max_body_size 0;\n"
        "    if ($scitags_is_told = 0) { return 204; }\n"
        "    access_log off;\n"
        "    proxy_pass http://scitags_agent/v1/flows;\n"
        "    proxy_method POST;\n"
        "    proxy_http_version 1.0;\n"
        "    proxy_pass_request_headers off;\n"
        "    proxy_set_header Host localhost;\n"
        "    proxy_set_header Content-Type application/json;\n"
        f'    proxy_set_body \'{{"state":"start",{_FLOW}}}\';\n'
        "    proxy_connect_timeout 100ms;\n"
        "    proxy_send_timeout 100ms;\n"
        "    proxy_read_timeout 200ms;\n"
        "    proxy_next_upstream off;\n"
        "    # Whatever goes wrong with the agent is nothing to the request.\n"
        "    proxy_intercept_errors on;\n"
        f"    error_page {_FAILURES} =204 /.scitags/untold;\n"
        "}\n"
        "location = /.scitags/untold { internal; client_max_body_size 0; access_log off; return 204; }\n"
    )


def _location(wishes: NginxWishes) -> str:
    if wishes.waits:
        start = (
            "# The request waits until its packets are marked, 0.3 s at most. It is always let through: never have it\n"
            "# together with `satisfy any`, which would let in whomever another rule keeps out.\n"
            "auth_request /.scitags/start;\n"
        )
    else:
        start = "# Beside the request, which does not wait.\nmirror /.scitags/start;\nmirror_request_body off;\n"
    return (
        "# In each location that serves data: include snippets/scitags-location.conf;\n"
        f"{start}"
        f"access_log syslog:server=unix:{wishes.agent},nohostname,tag=scitags scitags if=$scitags_is_told;\n"
        "# With a log of its own a location has none of those above it.\n"
        f"access_log {wishes.log};\n"
    )
