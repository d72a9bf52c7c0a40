"""Certificates for tests: of the server, of clients, and of authorities that nobody trusts."""

from pathlib import Path

import trustme


class Authority:
    """A certificate authority, whose certificates go to files in a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self._authority = trustme.CA(organization_name=name)
        self._directory = directory
        self._name = name
        self.file = directory / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key, for `name` and for loopback."""
        one = self._authority.issue_cert(name, "127.0.0.1", "localhost")
        cert = self._directory / f"{self._name}-{name}.crt"
        key = cert.with_suffix(".key")
        cert.write_bytes(b"".join(blob.bytes() for blob in one.cert_chain_pems))
        key.write_bytes(one.private_key_pem.bytes())
        return cert, key
