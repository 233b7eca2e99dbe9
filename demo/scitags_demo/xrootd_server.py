"""What a real xrootd with our plug-in is told, whatever else it is for."""

from __future__ import annotations

import re
from pathlib import Path

USER = "xrootd"  # the server refuses to run as root; Debian's package makes this user
ROOT_PORT, HTTP_PORT = 1094, 8443
# Lines of its configuration, to be formatted: root://, HTTP and HTTPS, third-party copies, and the tags of all.
LINES = """
all.export /
all.adminpath {directory}/admin
all.pidpath {directory}/admin
oss.localroot {directory}/root
ofs.tpc pgm /usr/bin/xrdcp --server
xrd.port {root_port}
xrd.network nodnr
xrd.tls {directory}/certificate.pem {directory}/key.pem
xrd.tlsca certdir {authority}
xrd.protocol XrdHttp:{http_port} libXrdHttp.so
http.header2cgi SciTag scitag.flow
http.header2cgi scitag scitag.flow
xrootd.fslib ++ {library}
http.exthandler xrdtpc {library}
"""


def configured(library: Path) -> Path:
    """A plug-in as the configuration names it: the server puts the number of its version behind the name."""
    return library.with_name(re.sub(r"-\d\.so$", ".so", library.name))
