"""Real web servers on alice, with what `scitags http-server config` prints. Their workers are of another user."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from scitags_http import apache, nginx
from tests.http.conftest import Service, Site

OCTETS = 3_000_000
NGINX_PORT = 8080
NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
    server {{
        listen [::]:{port} ipv6only=off;
        root {directory}/data;
        {server}
        location / {{
            client_max_body_size 0;
            dav_methods PUT DELETE;
            # The network here is as fast as memory.
            limit_rate 30m;
            {location}
        }}
        location /private/ {{
            deny all;
            {location}
        }}
    }}
}}
"""


def program(*names: str) -> str:
    """The path of a program; skips the test where there is none of these names."""
    for name in names:
        found = shutil.which(name, path="/usr/sbin:/usr/bin")
        if found:
            return found
    pytest.skip(f"needs {names[0]}")


def directory_for(site: Site, name: str) -> Path:
    """A directory with a file to serve, in which the workers may write."""
    directory = site.agent.directory / f"{name}-{os.urandom(3).hex()}"
    (directory / "data" / "private").mkdir(parents=True)
    (directory / "data").chmod(0o777)
    for where in ("data/file", "data/private/file"):
        (directory / where).write_bytes(bytes(OCTETS))
    return directory


def start_nginx(site: Site, *, waits: bool) -> Service:
    """nginx, its configuration as printed; it listens."""
    path = program("nginx")
    directory = directory_for(site, "nginx")
    wishes = nginx.NginxWishes(
        str(site.agent.socket), str(site.agent.directory / "http.sock"), f"{directory}/access.log", waits
    )
    files = nginx.files(wishes)
    parts = [files[name] for name in (nginx.HTTP_FILE, nginx.SERVER_FILE, nginx.LOCATION_FILE)]
    http, server, location = parts
    text = NGINX.format(directory=directory, http=http, server=server, location=location, port=NGINX_PORT)
    (directory / "nginx.conf").write_text(text)
    one = Service(site, [path, "-p", str(directory), "-c", str(directory / "nginx.conf")])
    one.wait_until_it_listens(NGINX_PORT)
    return one


APACHE_PORT = 8081
MODULES = ("mpm_event", "authn_core", "authz_core", "dav", "dav_fs", "env", "lua", "ratelimit", "setenvif")
APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
User www-data
Group www-data
Listen [::]:{port}
DocumentRoot {directory}/data
DavLockDB {directory}/lock/db
<Directory {directory}/data>
    Require all granted
    Dav On
</Directory>
<Location />
    # The network here is as fast as memory.
    SetOutputFilter RATE_LIMIT
    SetEnv rate-limit 30000
</Location>
<Location /private>
    Require all denied
</Location>
Include {directory}/server.conf
<VirtualHost *:{port}>
    Include {directory}/host.conf
</VirtualHost>
"""


def start_apache(site: Site, *, waits: bool) -> Service:
    """Apache, its configuration as printed; it listens."""
    path = program("apache2")
    directory = directory_for(site, "apache")
    (directory / "lock").mkdir()
    (directory / "lock").chmod(0o777)
    api, script = str(site.agent.directory / "http.sock"), str(directory / "scitags.lua")
    wishes = apache.ApacheWishes(APACHE_PORT, str(site.agent.socket), api, waits, script)
    files = apache.files(wishes)
    Path(script).write_text(files[script])
    (directory / "server.conf").write_text(files[apache.SERVER_FILE])
    (directory / "host.conf").write_text(files[apache.HOST_FILE.format(port=APACHE_PORT)])
    modules = "".join(f"LoadModule {one}_module /usr/lib/apache2/modules/mod_{one}.so\n" for one in MODULES)
    (directory / "apache.conf").write_text(modules + APACHE.format(directory=directory, port=APACHE_PORT))
    one = Service(site, [path, "-d", str(directory), "-f", str(directory / "apache.conf"), "-DFOREGROUND"])
    one.wait_until_it_listens(APACHE_PORT)
    return one
