#!/bin/sh
# setup.sh VENV [full|tests]: make the virtual environment that the Makefile works in, and install what it needs from the
# system first; with "full", what the demonstration on real parts needs as well; with "tests", all that the tests need.
# Asks for nothing that is there already. Without the right to install packages it says what is missing and goes on:
# all but the marking of packets works without them.
set -eu
venv=${1:-.venv}
for_full=${2:-}
for_tests=""
[ "$for_full" != tests ] || for_tests=tests
cd "$(dirname "$0")/.."

say() { echo "setup: $*"; }

has_libbpf() { { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -q 'libbpf\.so\.1'; }

missing=""
command -v clang >/dev/null || missing="$missing clang"
has_libbpf || missing="$missing libbpf1"
[ -e /usr/include/bpf/bpf_helpers.h ] || missing="$missing libbpf-dev"
command -v make >/dev/null || missing="$missing make"
if [ -n "$for_full" ]; then
    # The storage and the clients that the real Rucio moves files with.
    command -v xrootd >/dev/null || missing="$missing xrootd-server"
    command -v xrdcp >/dev/null || missing="$missing xrootd-client"
    [ -n "$(find /usr/lib -name 'libXrdHttp-*.so' 2>/dev/null | head -1)" ] || missing="$missing xrootd-server-plugins"
    /usr/bin/python3 -c 'import gfal2' 2>/dev/null || missing="$missing python3-gfal2"
    command -v gfal-copy >/dev/null || missing="$missing gfal2-util-scripts"
    for plugin in file http xrootd; do
        [ -n "$(find /usr/lib -name "libgfal_plugin_$plugin.so" 2>/dev/null)" ] || missing="$missing gfal2-plugin-$plugin"
    done
    # The plug-in for the server is built, and asked by every kind of client.
    command -v cmake >/dev/null || missing="$missing cmake"
    command -v g++ >/dev/null || missing="$missing g++"
    [ -e /usr/include/xrootd/XrdSfs/XrdSfsInterface.hh ] || missing="$missing libxrootd-server-dev libxrootd-dev"
    [ -e /usr/include/xrootd/private/XrdHttp/XrdHttpExtHandler.hh ] || missing="$missing libxrootd-private-dev"
    [ -e /usr/include/nlohmann/json.hpp ] || missing="$missing nlohmann-json3-dev"
    command -v curl >/dev/null || missing="$missing curl"
    command -v openssl >/dev/null || missing="$missing openssl"
    # The environment of Rucio is made from the system's Python, which has gfal2.
    /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
fi
if [ -n "$for_tests" ]; then
    # Debian's build of what the real FTS client is built on: the one on PyPI wants a compiler.
    /usr/bin/python3 -c 'import M2Crypto' 2>/dev/null || missing="$missing python3-m2crypto"
    # The other loader of the marker, and the headers of a kernel, which it compiles with.
    [ -e /usr/share/doc/libbpfcc ] || missing="$missing python3-bpfcc"
    [ -n "$(find /usr/src -maxdepth 1 -name 'linux-headers-*-common' 2>/dev/null)" ] ||
        missing="$missing linux-headers-$(dpkg --print-architecture 2>/dev/null || echo amd64)"
    # systemd-analyze reads the agent's unit.
    command -v systemd-analyze >/dev/null || missing="$missing systemd"
    # The broker by which FTS tells of finished transfers; nothing of it is started by its packages.
    [ -e /usr/share/activemq/bin/activemq.jar ] || missing="$missing activemq"
    command -v java >/dev/null || missing="$missing default-jre-headless"
    # The examples' agents run in namespaces that ip makes; the unit's reload is kill's.
    { command -v ip || [ -x /sbin/ip ]; } >/dev/null || missing="$missing iproute2"
    [ -x /bin/kill ] || missing="$missing procps"
    /usr/bin/python3 -c 'import XRootD' 2>/dev/null || missing="$missing python3-xrootd"
    # What VOMS says of people, and the server that reads it.
    command -v voms-proxy-fake >/dev/null || missing="$missing voms-clients"
    [ -n "$(find /usr/lib -name 'libXrdVoms-*.so' 2>/dev/null)" ] || missing="$missing xrootd-voms-plugins"
    # Servers of data by HTTP. Their services are not started: see below.
    [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
    [ -e /usr/lib/apache2/modules/mod_lua.so ] || missing="$missing apache2-bin"
    [ -e /usr/share/lua/5.3/socket.lua ] || missing="$missing lua-socket"
    # What exports sFlow, NetFlow and IPFIX. Their services would start with the system: masked below.
    exporters=""
    command -v pmacctd >/dev/null || [ -x /usr/sbin/pmacctd ] || exporters="$exporters pmacct"
    command -v softflowd >/dev/null || [ -x /usr/sbin/softflowd ] || exporters="$exporters softflowd"
    missing="$missing$exporters"
    # editcap writes capture files as others do.
    command -v editcap >/dev/null || missing="$missing wireshark-common"
fi

# The first python3 that is new enough; Debian 12's own is.
python=""
for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { say "Python 3.11 or later is needed"; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"

if [ -n "$missing" ]; then
    say "missing from the system:$missing"
    if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo"; fi
    if command -v apt-get >/dev/null && { [ -z "$as_root" ] || command -v sudo >/dev/null; }; then
        say "${as_root:+$as_root }apt-get install$missing"
        if [ -n "${exporters:-}" ] && [ -d /run/systemd/system ]; then
            say "their services are masked, so that none is started"
            $as_root systemctl --quiet mask pmacctd nfacctd sfacctd uacctd pmbgpd pmbmpd pmtelemetryd softflowd || true
        fi
        log=$(mktemp)
        # What the tests need of a server is its program: its package is told to start no service (policy-rc.d, Debian).
        policy=/usr/sbin/policy-rc.d
        if [ -z "$as_root" ] && [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        else
            policy=""
        fi
        # shellcheck disable=SC2086  # words on purpose
        { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends $missing; } >"$log" 2>&1 || {
            cat "$log"
            say "that failed; going on without"
        }
        rm -f "$log"
        [ -z "$policy" ] || rm -f "$policy"
    else
        say "install them by hand to have packets marked; going on without"
    fi
fi

if [ ! -x "$venv/bin/python" ]; then
    say "a virtual environment in $venv, with $("$python" --version)"
    "$python" -m venv "$venv"
fi
say "scitags-suite and the packages that it needs into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
say "done"
