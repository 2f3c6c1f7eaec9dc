"""`[dashboard]`: the page that shows the ledger in a browser."""

import re
from typing import Any, Final

from pydantic import Field, field_validator

from bursar.daemon._listen import normalise_tcp
from bursar.daemon._model import Section, right

_HOSTS_MAX: Final = 100
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class DashboardSection(Section):
    """`[dashboard]`: accounts, GPUs and history in a browser, as they change."""

    listen: str | None = Field(
        default=None,
        description="an address to listen on; without one there is no dashboard",
        json_schema_extra=right('write an address and a port, such as "127.0.0.1:7414"'),
    )
    tls: bool = Field(
        default=False,
        description="whether it has the TLS of [server.tls]",
        json_schema_extra=right("write true or false"),
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        max_length=_HOSTS_MAX,
        strict=False,
        description="what else browsers may call a loopback address: names of a proxy before it",
        json_schema_extra=right('write at most 100 names such as ["bursar.example"]'),
    )
    max_connections: int = Field(
        default=200,
        ge=2,
        le=10_000,
        description="how many connections are open at once; half of them may watch",
        json_schema_extra=right("write an integer from 2 to 10_000"),
    )

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str | None) -> str | None:
        return normalise_tcp(value) if value else None

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host[:80]!r} is not a host's name; it has no scheme or port")
        return value

    def to_core(self) -> dict[str, Any]:
        """What the Rust core reads."""
        return {**self.model_dump(), "hosts": list(self.hosts)}
