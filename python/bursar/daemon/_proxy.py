"""`[proxy]`: the endpoint for model calls, where it listens and which providers are behind it.

Keys are read from the environment or a file here, and handed to the core; they are in no
configuration file and in no message.
"""

import os
import re
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from bursar.daemon._explain import ConfigError, Problem
from bursar.daemon._listen import normalise_tcp
from bursar.daemon._model import Bytes, DurationMs, Section, right

DEFAULT_NOTICE: Final = "\n\n[Stopped: the compute budget is used up.]"
_UPSTREAMS_MAX: Final = 100
_TOKENS_MAX: Final = 10_000
_KEY_BYTES_MAX: Final = 16 * 2**10
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SECONDS: Final = right('write from "1s" to "1h"')


class UpstreamConfig(Section):
    """A provider of models."""

    name: str = Field(
        min_length=1,
        max_length=64,
        description="what error messages call it",
        json_schema_extra=right('write a name such as "openai"'),
    )
    url: str = Field(
        min_length=1,
        max_length=2_000,
        description="its address",
        json_schema_extra=right('write an address such as "https://api.openai.com"'),
    )
    api: Literal["openai", "anthropic"] = Field(
        default="openai",
        description="whose interface it has",
        json_schema_extra=right('write "openai" or "anthropic"'),
    )
    engine: Literal["other", "llama.cpp", "vllm"] = Field(
        default="other",
        description="the engine, if it can count each token; it is then asked to",
        json_schema_extra=right('write "llama.cpp", "vllm" or "other"'),
    )
    key_env: str | None = Field(
        default=None,
        min_length=1,
        description="the environment variable of the sidecar that holds its key",
        json_schema_extra=right('write a name such as "OPENAI_API_KEY"'),
    )
    key_file: str | None = Field(
        default=None,
        min_length=1,
        description="the file that holds its key",
        json_schema_extra=right('write a path such as "/run/secrets/openai"'),
    )
    models: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        max_length=1_000,
        strict=False,
        description="the models that it serves; a name may end in *",
        json_schema_extra=right('write a list such as ["gpt-*", "o3"]'),
    )

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("that is not an address of http or https")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("an address has no key, query or fragment; use key_env or key_file")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("key_env and key_file exclude each other")
        return self

    def to_core(self) -> dict[str, Any]:
        """Writes the core's form, with the key."""
        return {
            **self.model_dump(include={"name", "url", "api", "engine"}),
            "key": self._key(),
            "models": list(self.models),
        }

    def _key(self) -> str | None:
        if self.key_env is not None:
            key = os.environ.get(self.key_env, "").strip()
            if not key:
                raise self._keyless(f"the environment variable {self.key_env} is not set")
            return key
        if self.key_file is None:
            return None
        try:
            with Path(self.key_file).open(encoding="utf-8") as file:
                key = file.read(_KEY_BYTES_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise self._keyless(f"{self.key_file} cannot be read: {reason}") from None
        if not key:
            raise self._keyless(f"{self.key_file} is empty")
        return key

    def _keyless(self, why: str) -> ConfigError:
        return ConfigError([Problem(f"proxy.upstreams ({self.name})", f"no key: {why}")])


class TokenConfig(Section):
    """A token that stands for an account; only its hash is known here."""

    sha256: str = Field(
        description="the SHA-256 of the token, in hexadecimal",
        json_schema_extra=right("write 64 digits, as `printf %s TOKEN | sha256sum` tells them"),
    )
    account: str = Field(
        min_length=1,
        max_length=1024,
        description="the account that it spends on, and those below",
        json_schema_extra=right('write a path such as "acme/research"'),
    )

    @field_validator("sha256")
    @classmethod
    def _digits(cls, value: str) -> str:
        if not _SHA256.fullmatch(value.lower()):
            raise ValueError("that is not a SHA-256")
        return value.lower()


class ProxySection(Section):
    """`[proxy]`: agents use it as their base URL, and are held to their budgets."""

    listen: str | None = Field(
        default=None,
        description="an address to listen on; without one there is no proxy",
        json_schema_extra=right('write an address and a port, such as "127.0.0.1:7412"'),
    )
    tls: bool = Field(
        default=False,
        description="whether it has the TLS of [server.tls]",
        json_schema_extra=right("write true or false"),
    )
    upstreams: tuple[UpstreamConfig, ...] = Field(
        default=(),
        max_length=_UPSTREAMS_MAX,
        strict=False,
        description="where calls go; the first that serves the model counts",
        json_schema_extra=right("write at most 100 [[proxy.upstreams]] tables"),
    )
    default_account: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="the account of calls that name none by path, header or token",
        json_schema_extra=right('write a path such as "acme/unnamed", or leave it out'),
    )
    tokens: tuple[TokenConfig, ...] = Field(
        default=(),
        max_length=_TOKENS_MAX,
        strict=False,
        description="tokens and their accounts",
        json_schema_extra=right("write at most 10_000 [[proxy.tokens]] tables"),
    )
    default_max_output_tokens: int = Field(
        default=4_096,
        ge=1,
        le=1_000_000,
        description="the output that is held for, and granted, where a call names no maximum",
        json_schema_extra=right("write an integer from 1 to 1_000_000"),
    )
    min_output_tokens: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="the least output that is worth starting a call for",
        json_schema_extra=right("write an integer from 1 to 1_000_000"),
    )
    notice: str = Field(
        default=DEFAULT_NOTICE,
        max_length=10_000,
        description="what is appended to an answer that the budget has cut",
        json_schema_extra=right("write a sentence, in any language"),
    )
    strict_errors: bool = Field(
        default=False,
        description="whether a cut stream ends in an error instead of the notice",
        json_schema_extra=right("write true or false"),
    )
    capable_models: tuple[str, ...] = Field(
        default=(),
        max_length=1_000,
        strict=False,
        description="fallback models that take tools and images as well",
        json_schema_extra=right('write a list such as ["gpt-4o-mini"]'),
    )
    context_tokens: dict[str, int] = Field(
        default_factory=dict,
        max_length=1_000,
        description="how many tokens, prompt and output, fallback models take in all",
        json_schema_extra=right("write a table of at most 1_000 such as { small = 8_192 }"),
    )
    max_body_bytes: Bytes = Field(
        default=32 * 2**20,
        ge=64 * 2**10,
        le=512 * 2**20,
        description="the longest request, and the longest answer that is not a stream; "
        "requests under way take up to 16 times that",
        json_schema_extra=right('write from "64 KiB" to "512 MiB"'),
    )
    max_connections: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="how many connections are open at once; one more is closed",
        json_schema_extra=right("write an integer from 1 to 100_000"),
    )
    max_calls: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="how many calls are under way at once; one more is answered 503",
        json_schema_extra=right("write an integer from 1 to 100_000"),
    )
    client_timeout: DurationMs = Field(
        default=60_000,
        ge=1_000,
        le=3_600_000,
        description="how long a client may take to send its request, or read nothing",
        json_schema_extra=_SECONDS,
    )
    connect_timeout: DurationMs = Field(
        default=10_000,
        ge=100,
        le=3_600_000,
        description="how long connecting to an upstream may take",
        json_schema_extra=right('write from "100ms" to "1h"'),
    )
    first_byte_timeout: DurationMs = Field(
        default=600_000,
        ge=100,
        le=3_600_000,
        description="how long the first byte of an answer may take",
        json_schema_extra=right('write from "100ms" to "1h"'),
    )
    idle_timeout: DurationMs = Field(
        default=120_000,
        ge=100,
        le=3_600_000,
        description="how long an answer may pause",
        json_schema_extra=right('write from "100ms" to "1h"'),
    )

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str | None) -> str | None:
        return normalise_tcp(value) if value else None

    @model_validator(mode="after")
    def _has_upstreams(self) -> Self:
        if self.listen and not self.upstreams:
            raise ValueError("listen is set, and there is no [[proxy.upstreams]] to send calls to")
        return self

    def resolved(self, folder: Path) -> Self:
        """The same section with absolute paths."""
        upstreams = tuple(
            one.model_copy(update={"key_file": str((folder / one.key_file).absolute())})
            if one.key_file is not None
            else one
            for one in self.upstreams
        )
        return self.model_copy(update={"upstreams": upstreams})

    def to_core(self) -> dict[str, Any]:
        """Writes the core's form, with the keys."""
        plain = {
            "listen", "tls", "default_account", "default_max_output_tokens", "min_output_tokens",
            "notice", "strict_errors", "max_body_bytes", "max_connections", "max_calls",
        }  # fmt: skip
        return {
            **self.model_dump(include=plain),
            "upstreams": [one.to_core() for one in self.upstreams],
            "tokens": [one.model_dump() for one in self.tokens],
            "capable_models": list(self.capable_models),
            "context_tokens": dict(self.context_tokens),
            "client_timeout_ms": self.client_timeout,
            "connect_timeout_ms": self.connect_timeout,
            "first_byte_timeout_ms": self.first_byte_timeout,
            "idle_timeout_ms": self.idle_timeout,
        }
