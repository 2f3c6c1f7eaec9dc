"""`[access]`: who may do what."""

import grp
import pwd
from collections.abc import Callable
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from bursar.daemon._accounts import check_name, split_path
from bursar.daemon._model import Section, right

_ID_MAX: Final = 2**32 - 2


class _Grant(Section):
    """What a caller may do, and where."""

    role: Literal["agent", "observer", "operator"] = Field(
        description="what the caller may do: spend and read, read, or everything",
        json_schema_extra=right('write "agent", "observer" or "operator"'),
    )
    account: str = Field(
        default="",
        description="where: this account and those below it; empty for all",
        json_schema_extra=right('write a path such as "acme/research"'),
    )

    @field_validator("account")
    @classmethod
    def _account(cls, value: str) -> str:
        for name in split_path(value) if value else ():
            check_name(name)
        return value


class LocalCaller(_Grant):
    """`[[access.local]]`: who calls by the Unix socket, and what that caller may do."""

    user: str | int | None = Field(
        default=None,
        description="the user that the caller runs as",
        json_schema_extra=right('write a name or an id, such as "alice" or 1000'),
    )
    group: str | int | None = Field(
        default=None,
        description="a group that the caller is in, as its primary or another one; a row with a "
        "group alone does not mean root or the sidecar's own user",
        json_schema_extra=right('write a name or an id, such as "ml" or 1000'),
    )
    cgroup: str | None = Field(
        default=None,
        max_length=4096,
        description="the control group (version 2) that the caller is in, or one below it",
        json_schema_extra=right('write a path such as "/system.slice/agent.service"'),
    )

    @field_validator("user")
    @classmethod
    def _user(cls, value: str | int | None) -> int | None:
        return _id_of(value, lambda name: pwd.getpwnam(name).pw_uid, "user")

    @field_validator("group")
    @classmethod
    def _group(cls, value: str | int | None) -> int | None:
        return _id_of(value, lambda name: grp.getgrnam(name).gr_gid, "group")

    @field_validator("cgroup")
    @classmethod
    def _cgroup(cls, value: str | None) -> str | None:
        if value is None:
            return None
        names = value.split("/")
        if names[0] or len(names) < 2 or {"", ".", ".."} & set(names[1:]):  # noqa: PLR2004 -- "/x"
            raise ValueError("that is no control group as /proc/PID/cgroup shows it")
        return value

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.user is None and self.group is None and self.cgroup is None:
            raise ValueError("neither user, group nor cgroup is set, so everybody would be meant")
        return self

    def to_core(self) -> dict[str, Any]:
        """What the Rust core reads."""
        about = {"role": self.role, "account": self.account}
        return about | {"uid": self.user, "gid": self.group, "cgroup": self.cgroup}


class CertificateCaller(_Grant):
    """`[[access.certificate]]`: who shows a certificate of this name, and what that one may do."""

    uri: str | None = Field(
        default=None,
        min_length=1,
        max_length=2048,
        description="a URI in its subject alternative name",
        json_schema_extra=right('write one such as "spiffe://example.org/agent-7"'),
    )
    dns: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="a DNS name in its subject alternative name",
        json_schema_extra=right('write one such as "agent-7.example.org"'),
    )
    common_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="the common name of its subject",
        json_schema_extra=right('write one such as "agent-7"'),
    )

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if len(self._name()) != 1:
            raise ValueError("write one of uri, dns and common_name")
        return self

    def _name(self) -> dict[str, str]:
        given = (("uri", self.uri), ("dns", self.dns), ("common_name", self.common_name))
        return {kind: name for kind, name in given if name is not None}

    def to_core(self) -> dict[str, Any]:
        """What the Rust core reads."""
        return {"role": self.role, "account": self.account, "name": self._name()}


class AccessSection(Section):
    """`[access]`: who may do what."""

    mode: Literal["open", "enforce"] = Field(
        default="open",
        description="who may call without a token: all who reach a listener, or only root, the "
        "sidecar's own user and those of [[access.local]]",
        json_schema_extra=right('write "open" or "enforce"'),
    )
    local: tuple[LocalCaller, ...] = Field(
        default=(),
        strict=False,
        description="callers by the Unix socket; the first row that fits counts",
        json_schema_extra=right("write [[access.local]] tables"),
    )

    certificate: tuple[CertificateCaller, ...] = Field(
        default=(),
        strict=False,
        description="callers by a certificate; the first row that fits counts",
        json_schema_extra=right("write [[access.certificate]] tables"),
    )

    def to_core(self) -> dict[str, Any]:
        """What the Rust core reads."""
        return {
            "mode": self.mode,
            "local": [one.to_core() for one in self.local],
            "certificate": [one.to_core() for one in self.certificate],
        }


def _id_of(value: str | int | None, look_up: Callable[[str], int], what: str) -> int | None:
    if value is None or isinstance(value, int):
        if value is not None and not 0 <= value <= _ID_MAX:
            raise ValueError(f"{value} is no id of a {what}")
        return value
    try:
        return look_up(value)
    except KeyError:
        raise ValueError(f"this host has no {what} {value!r}") from None
