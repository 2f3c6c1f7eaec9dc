"""`[metrics]` and `[log]`: what the sidecar tells of itself, and how."""

from typing import Literal

from pydantic import Field, field_validator

from bursar.daemon._listen import normalise_tcp
from bursar.daemon._model import Section, right


class MetricsSection(Section):
    """`[metrics]`: the endpoint for Prometheus."""

    listen: str | None = Field(
        default=None,
        description="an address to serve /metrics on; without one there is no endpoint",
        json_schema_extra=right('write an address and a port, such as "127.0.0.1:7413"'),
    )
    tls: bool = Field(
        default=False,
        description="whether it has the TLS of [server.tls]",
        json_schema_extra=right("write true or false"),
    )
    max_accounts: int = Field(
        default=1_000,
        ge=0,
        le=10_000,
        description="how many accounts with budgets have series, from the root down",
        json_schema_extra=right("write an integer from 0 to 10_000"),
    )

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str | None) -> str | None:
        return normalise_tcp(value) if value else None


class LogSection(Section):
    """`[log]`: how the sidecar writes what happens to stderr."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="a line of text for each event, or a JSON object",
        json_schema_extra=right('write "text" or "json"'),
    )
