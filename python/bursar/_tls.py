"""What a client needs for TLS, and what it never sends without it."""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bursar._convert import invalid

CA_VARIABLE: Final = "BURSAR_TLS_CA"
CERTIFICATE_VARIABLE: Final = "BURSAR_TLS_CERTIFICATE"
KEY_VARIABLE: Final = "BURSAR_TLS_KEY"
SYSTEM: Final = "system"
_FILE_BYTES_MAX: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a client reaches a sidecar by TLS. Files are read when the client is made.

    Attributes:
        ca: The file of the authorities that sidecars are trusted by, in PEM; None: the system's.
        certificate: The file of the client's own certificate, with those between it and its
            authority; None: it shows none.
        key: The file of the certificate's private key.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise invalid("a certificate and its key belong together", field="tls")


def tls_of_environment() -> Tls | None:
    """What BURSAR_TLS_CA, BURSAR_TLS_CERTIFICATE and BURSAR_TLS_KEY say; None: nothing."""
    ca, certificate, key = (
        os.environ.get(name) or None for name in (CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE)
    )
    if ca is None and certificate is None and key is None:
        return None
    return Tls(ca=None if ca == SYSTEM else ca, certificate=certificate, key=key)


def credentials(target: str, tls: Tls | None, *, shows_token: bool) -> Any:  # noqa: ANN401 -- gRPC's
    """The channel credentials for a target; None: plain bytes.

    Raises:
        InvalidRequest: A file cannot be read, a socket cannot have TLS, or a token would be sent to
            another host in the clear.
    """
    is_socket = target.startswith(("unix:", "unix-abstract:"))
    if is_socket:
        if tls is not None:
            raise invalid("a Unix socket has no TLS: leave tls out", field="tls")
        return None
    tls = tls_of_environment() if tls is None else tls
    if tls is None:
        if shows_token and not _is_loopback(target):
            raise invalid(
                f"the token would be sent to {target} in the clear, where others can read it: "
                f"set tls or {CA_VARIABLE}, or connect to this host",
                field="tls",
            )
        return None
    import grpc

    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca),
        private_key=_read(tls.key),
        certificate_chain=_read(tls.certificate),
    )


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            found = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise invalid(f"{path} cannot be read: {error.strerror}", field="tls") from None
    if b"-----BEGIN " not in found:  # gRPC would only say that no sidecar answers
        raise invalid(f"{path} has nothing in PEM", field="tls")
    return found
