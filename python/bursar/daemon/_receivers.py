"""`[notify]`: who is told of what happens, by webhook or by command.

Secrets are read from a file or the environment, and are in no configuration file and no message.
"""

import ipaddress
import os
import re
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator, model_validator

from bursar.daemon._accounts import check_pattern
from bursar.daemon._explain import ConfigError, Problem
from bursar.daemon._model import DurationMs, Section, right
from bursar.notify.events import Selection, expand

if TYPE_CHECKING:
    from bursar.notify.outcomes import Receiver

RECEIVERS_MAX: Final = 20
_ARGUMENTS_MAX: Final = 100
_CHARACTERS_MAX: Final = 4_096
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ReceiverConfig(Section):
    """What webhooks and commands have in common."""

    kind: ClassVar[str]

    name: str = Field(
        description="what messages and `bursar notify` call it",
        json_schema_extra=right("write 1 to 64 letters, digits and ._- after a letter or digit"),
    )
    events: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        max_length=100,
        strict=False,
        description="what it is told of",
        json_schema_extra=right('write names or groups, such as ["crossing.*", "freeze"]'),
    )
    accounts: tuple[str, ...] = Field(
        default=("**",),
        min_length=1,
        max_length=100,
        strict=False,
        description="whose events; those of no account are for those who have all, by **",
        json_schema_extra=right('write patterns of paths, such as ["acme", "acme/**"]'),
    )
    timeout: DurationMs = Field(
        default=10_000,
        ge=100,
        le=300_000,
        description="how long one attempt may take in all",
        json_schema_extra=right('write from "100ms" to "5m"'),
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("that is not a name")
        return value

    @field_validator("events")
    @classmethod
    def _events(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        expand(value)
        return value

    @field_validator("accounts")
    @classmethod
    def _accounts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            check_pattern(pattern)
        return value

    @property
    def selection(self) -> Selection:
        """What it wants."""
        return Selection(expand(self.events), self.accounts)

    def to_receiver(self) -> "Receiver":
        """The same as a receiver; raises ConfigError where it cannot be one on this host."""
        raise NotImplementedError

    def unusable(self, why: str) -> ConfigError:
        """Why not."""
        return ConfigError([Problem(f"notify.{self.kind}s ({self.name})", why)])


class WebhookConfig(ReceiverConfig):
    """`[[notify.webhooks]]`: who is told by HTTP."""

    kind = "webhook"

    url: str = Field(
        min_length=1,
        max_length=2_000,
        description="its address",
        json_schema_extra=right('write one such as "https://example.org/bursar"', secret=True),
    )
    secret_file: str | None = Field(
        default=None,
        min_length=1,
        description="the file of the secrets that sign, one a line",
        json_schema_extra=right('write a path such as "/run/secrets/webhook"'),
    )
    secret_env: str | None = Field(
        default=None,
        min_length=1,
        description="the environment variable of the sidecar that holds them",
        json_schema_extra=right('write a name such as "BURSAR_WEBHOOK_SECRET"'),
    )
    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="the file of the authorities that its certificate may come from",
        json_schema_extra=right('write a path such as "/etc/bursar/receivers.crt"; PEM'),
    )
    plain_http: bool = Field(
        default=False,
        description="whether its address may be http:// on another host, readable on its way",
        json_schema_extra=right("write true or false"),
    )

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("it has characters that an address does not have")
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("that is not an address of http or https")
        if parts.username is not None or parts.fragment:
            raise ValueError("an address of a webhook has no user and no fragment")
        _ = parts.port  # which may be none, and then says so
        return value

    @model_validator(mode="after")
    def _signed_and_private(self) -> Self:
        if (self.secret_env is None) == (self.secret_file is None):
            raise ValueError("write one of secret_file and secret_env: events are signed")
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not (self.plain_http or _is_loopback(parts.hostname or "")):
            raise ValueError("url is http:// on another host: write https://, or plain_http = true")
        return self

    def resolved(self, folder: Path) -> Self:
        """The same with absolute paths."""
        files = {"secret_file": self.secret_file, "ca_file": self.ca_file}
        paths = {key: str((folder / path).absolute()) for key, path in files.items() if path}
        return self.model_copy(update=paths)

    def to_receiver(self) -> "Receiver":
        """The same as a receiver, if its secrets and authorities are there."""
        from bursar.notify.webhook import Secret, SecretError, Webhook, check_ca

        secret = Secret(self.secret_file, self.secret_env)
        try:
            secret.keys()
            check_ca(self.ca_file)
        except SecretError as error:
            raise self.unusable(str(error)) from None
        except OSError as error:
            why = f"{self.ca_file} cannot be used: {error.strerror or error}"
            raise self.unusable(why) from None
        return Webhook(
            name=self.name,
            url=self.url,
            secret=secret,
            selection=self.selection,
            timeout_s=self.timeout / 1000,
            ca_file=self.ca_file,
        )


class CommandConfig(ReceiverConfig):
    """`[[notify.commands]]`: what is started for each event."""

    kind = "command"

    run: tuple[str, ...] = Field(
        min_length=1,
        max_length=_ARGUMENTS_MAX,
        strict=False,
        description="the program and its arguments; no shell reads them",
        json_schema_extra=right('write a list such as ["/usr/local/bin/tell", "--quiet"]'),
    )

    @field_validator("run")
    @classmethod
    def _run(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].startswith("/"):
            raise ValueError("the program is not an absolute path")
        if any("\0" in one or len(one) > _CHARACTERS_MAX for one in value):
            raise ValueError(f"an argument has a zero byte, or more than {_CHARACTERS_MAX}")
        return value

    def to_receiver(self) -> "Receiver":
        """The same as a receiver, if the program is there."""
        from bursar.notify.command import Command

        if not (Path(self.run[0]).is_file() and os.access(self.run[0], os.X_OK)):
            why = f"{self.run[0]} is not a program that the sidecar may start"
            raise self.unusable(why)
        return Command(
            name=self.name,
            run=self.run,
            selection=self.selection,
            timeout_s=self.timeout / 1000,
        )


class NotifySection(Section):
    """`[notify]`: who is told of what happens."""

    source: str = Field(
        default="",
        max_length=256,
        description="what events say that they come from; empty: bursar:// and the host's name",
        json_schema_extra=right('write a URI such as "bursar://gpu-1.example.org"'),
    )
    max_backlog: int = Field(
        default=10_000,
        ge=10,
        le=100_000,
        description="how many events wait for one receiver; then the oldest goes, and is counted",
        json_schema_extra=right("write an integer from 10 to 100_000"),
    )
    webhooks: tuple[WebhookConfig, ...] = Field(
        default=(),
        max_length=RECEIVERS_MAX,
        strict=False,
        description="who is told by HTTP",
        json_schema_extra=right(f"write at most {RECEIVERS_MAX} [[notify.webhooks]] tables"),
    )
    commands: tuple[CommandConfig, ...] = Field(
        default=(),
        max_length=RECEIVERS_MAX,
        strict=False,
        description="what is started for each event",
        json_schema_extra=right(f"write at most {RECEIVERS_MAX} [[notify.commands]] tables"),
    )

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("that is not a URI")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = Counter(one.name for one in self.receivers)
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"{count} receivers are called {name}; give each its own name")
        return self

    @property
    def receivers(self) -> tuple[ReceiverConfig, ...]:
        """Those who are told."""
        return (*self.webhooks, *self.commands)

    @property
    def named_source(self) -> str:
        """What events say that they come from."""
        return self.source or f"bursar://{quote(socket.gethostname())}"

    def resolved(self, folder: Path) -> Self:
        """The same section with absolute paths."""
        webhooks = tuple(one.resolved(folder) for one in self.webhooks)
        return self.model_copy(update={"webhooks": webhooks})


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
