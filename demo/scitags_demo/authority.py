"""A certificate authority for servers and people of a few minutes, by the program openssl."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 60
_DAYS = "2"
_NEW_KEY = ("-nodes", "-newkey", "rsa:2048")
# What VOMS wants to see in a certificate that it is to sign for.
_OF_PEOPLE = """subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
keyUsage=digitalSignature,keyEncipherment
"""


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603, S607


class Authority:
    """Its certificate lies in directory as OpenSSL looks for it. Gone when closed.

    place is where its own directory is made; where temporary files are, unless given.
    """

    name = "authority for a moment"

    def __init__(self, place: Path | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="scitags-authority-", dir=place)
        Path(self._directory.name).chmod(0o755)  # servers run as users of their own
        self.directory = Path(self._directory.name) / "certificates"
        self.directory.mkdir()
        self.certificate, self._key = self.directory / "authority.pem", self.directory.parent / "authority.key"
        subject = ["-subj", f"/CN={self.name}", "-days", _DAYS, *_NEW_KEY]
        _openssl("req", "-x509", *subject, "-keyout", self._key, "-out", self.certificate)
        _openssl("rehash", self.directory)
        self.certificate.chmod(0o644)

    def certify(self, certificate: Path, key: Path, addresses: Sequence[str]) -> None:
        """Write the certificate and key of a server that is reached by these addresses."""
        names = "subjectAltName=" + ",".join(f"IP:{one}" for one in addresses)
        self._sign(certificate, key, "server for a moment", names)

    def certify_name(self, certificate: Path, key: Path, name: str) -> None:
        """Write the certificate and key of someone of this name."""
        self._sign(certificate, key, name, _OF_PEOPLE)

    def _sign(self, certificate: Path, key: Path, name: str, extensions: str) -> None:
        request, file = key.with_suffix(".csr"), key.with_suffix(".ext")
        file.write_text(extensions)
        _openssl("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        serial: list[str | Path] = ["-CAserial", self._key.with_suffix(".srl"), "-CAcreateserial"]
        signer: list[str | Path] = ["-CA", self.certificate, "-CAkey", self._key, *serial, "-days", _DAYS]
        _openssl("x509", "-req", "-in", request, *signer, "-extfile", file, "-out", certificate)
        key.chmod(0o400)

    def close(self) -> None:
        self._directory.cleanup()
