"""Addresses of listeners, `[server.tls]`, and what a listener that others can reach has to have."""

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pydantic import Field

from bursar.daemon._explain import Problem
from bursar.daemon._model import Section, right

if TYPE_CHECKING:
    from bursar.daemon.config import Config

_PORT_MAX: Final = 65535


class TlsSection(Section):
    """`[server.tls]`: what the sidecar shows by TCP, and whose clients it trusts."""

    certificate: str = Field(
        min_length=1,
        description="the file of the sidecar's certificate, with those of its authorities below it",
        json_schema_extra=right('write a path such as "/etc/bursar/tls.crt"; PEM'),
    )
    key: str = Field(
        min_length=1,
        description="the file of its private key, mode 0600",
        json_schema_extra=right('write a path such as "/etc/bursar/tls.key"; PEM'),
    )
    client_ca: str | None = Field(
        default=None,
        min_length=1,
        description="the file of the authorities whose clients are trusted",
        json_schema_extra=right('write a path such as "/etc/bursar/clients.crt"; PEM'),
    )

    def resolved(self, folder: Path) -> Self:
        """The same section with absolute paths."""
        given = self.model_dump(exclude_none=True)
        paths = {key: str((folder / path).absolute()) for key, path in given.items()}
        return self.model_copy(update=paths)


def normalise_tcp(value: str) -> str:
    """Reads ``host:port``, where the host is an address of this machine."""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _PORT_MAX:
        raise ValueError("that is not an address and a port")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("that is not an address and a port") from None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"  # noqa: PLR2004 -- IPv6


def unguarded(config: "Config") -> list[Problem]:
    """What keeps listeners from being safe where they can be reached from."""
    tls = config.server.tls is not None
    problems = []
    beside = (("proxy", config.proxy), ("dashboard", config.dashboard))
    if tls and config.server.tcp is None and not any(one.tls for _, one in beside):
        text = "no listener uses it: set server.tcp, proxy.tls or dashboard.tls"
        problems.append(Problem("server.tls", text))
    for name, section in beside:
        if section.tls and not tls:
            problems.append(Problem(f"{name}.tls", "there is no [server.tls] to take it from"))
    if config.access.certificate and (config.server.tls is None or not config.server.tls.client_ca):
        text = "no certificate would be trusted: set client_ca in [server.tls]"
        problems.append(Problem("access.certificate", text))
    listeners = (
        ("server.tcp", config.server.tcp, tls, "[server.tls]"),
        *(
            (f"{name}.listen", one.listen, tls and one.tls, f"[server.tls], {name}.tls")
            for name, one in beside
        ),
    )
    for key, address, has_tls, setting in listeners:
        if address is None or ipaddress.ip_address(host_of(address)).is_loopback:
            continue
        missing = [] if has_tls else [f"TLS ({setting}), or all that is sent could be read"]
        if config.access.mode != "enforce":
            missing.append('callers who show who they are ([access] mode = "enforce")')
        if missing:
            needs = " and ".join(missing)
            text = f"{address} can be reached from other hosts, which takes {needs}"
            problems.append(Problem(key, text))
    return problems


def host_of(address: str) -> str:
    """The host of ``host:port``."""
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")
