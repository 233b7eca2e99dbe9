"""A certificate authority for servers in tests."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

_SECONDS = 60


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=_SECONDS)


class Authority:
    """Its certificate lies in directory as OpenSSL looks for it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="scitags-authority-")
        Path(self._directory.name).chmod(0o755)
        self.directory = Path(self._directory.name) / "certificates"
        self.directory.mkdir()
        self.certificate, self._key = self.directory / "authority.pem", self.directory.parent / "authority.key"
        subject = ["-subj", "/CN=authority of tests", "-days", "2", "-nodes", "-newkey", "rsa:2048"]
        _openssl("req", "-x509", *subject, "-keyout", self._key, "-out", self.certificate)
        _openssl("rehash", self.directory)
        self.certificate.chmod(0o644)

    def certify(self, certificate: Path, key: Path, addresses: tuple[str, ...]) -> None:
        """Write the certificate and key of a server that is reached by these addresses."""
        request, names = key.with_suffix(".csr"), key.with_suffix(".ext")
        names.write_text("subjectAltName=" + ",".join(f"IP:{one}" for one in addresses))
        _openssl(
            "req",
            "-new",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/CN=server of tests",
            "-keyout",
            key,
            "-out",
            request,
        )
        signer: list[str | Path] = [
            "-CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-CAserial",
            self._key.with_suffix(".srl"),
            "-CAcreateserial",
            "-days",
            "2",
        ]
        _openssl("x509", "-req", "-in", request, *signer, "-extfile", names, "-out", certificate)
        key.chmod(0o400)

    def close(self) -> None:
        self._directory.cleanup()
