"""Who a caller is to the sidecar, and the tokens that say so."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bursar import _convert as convert
from bursar._calls import Call, _sendable
from bursar.v1 import access_pb2 as wire

__all__ = ["AsyncTokens", "NewToken", "Principal", "Role", "Token", "Tokens"]


class Role(StrEnum):
    """What a caller may do."""

    UNKNOWN = "unknown"
    """What this client does not know."""
    AGENT = "agent"
    """Spends, registers its processes, and reads."""
    OBSERVER = "observer"
    """Reads."""
    OPERATOR = "operator"
    """Everything: budgets, freezes, kills and tokens as well."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller as the sidecar knows it.

    Attributes:
        name: Its token's name, or such as "user 1000".
        role: What it may do.
        account: Where: this account and those below it; empty: all.
        expire_time: When its token expires; None: it came without one.
    """

    name: str
    role: Role
    account: str
    expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token, without its secret.

    Attributes:
        id: Names it; not a secret.
        name: What people call it.
        role: What it allows.
        account: Where: this account and those below it; empty: all.
        creator: Who made it.
        create_time: When it was made.
        expire_time: When it expires.
        revoke_time: When it was revoked; None: it was not.
    """

    id: str
    name: str
    role: Role
    account: str
    creator: str
    create_time: datetime | None
    expire_time: datetime | None
    revoke_time: datetime | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was made just now.

    Attributes:
        token: What is kept of it.
        secret: What its holder shows; nobody can ask for it again.
    """

    token: Token
    secret: str

    def __repr__(self) -> str:
        """Without the secret, which does not belong into logs."""
        return f"NewToken(token={self.token!r}, secret=…)"


def _role(number: int) -> Role:
    try:
        return Role(wire.Role.Name(number).removeprefix("ROLE_").lower())
    except ValueError:
        return Role.UNKNOWN


def _token(read: wire.Token) -> Token:
    return Token(
        id=read.id,
        name=read.name,
        role=_role(read.role),
        account=read.account,
        creator=read.creator,
        create_time=convert.moment(read, "create_time"),
        expire_time=convert.moment(read, "expire_time"),
        revoke_time=convert.moment(read, "revoke_time"),
    )


def who_am_i() -> Call[Principal]:
    """AccessService/WhoAmI."""

    def principal(answer: wire.WhoAmIResponse) -> Principal:
        read = answer.principal
        expires = convert.moment(read, "expire_time")
        return Principal(read.name, _role(read.role), read.account, expires)

    return Call("AccessService/WhoAmI", wire.WhoAmIRequest(), wire.WhoAmIResponse, principal)


@_sendable
def _create(name: str, *, role: Role, account: str, ttl_s: float) -> Call[NewToken]:
    request = wire.CreateTokenRequest(
        name=name,
        role=f"ROLE_{Role(role).name}",
        account=account,
        ttl=convert.duration(ttl_s, field="ttl_s"),
    )
    return Call(
        "AccessService/CreateToken",
        request,
        wire.CreateTokenResponse,
        lambda answer: NewToken(_token(answer.token), answer.secret),
    )


@_sendable
def _list(account: str) -> Call[tuple[Token, ...]]:
    return Call(
        "AccessService/ListTokens",
        wire.ListTokensRequest(account=account),
        wire.ListTokensResponse,
        lambda answer: tuple(_token(one) for one in answer.tokens),
    )


@_sendable
def _revoke(token_id: str) -> Call[Token]:
    return Call(
        "AccessService/RevokeToken",
        wire.RevokeTokenRequest(id=token_id),
        wire.RevokeTokenResponse,
        lambda answer: _token(answer.token),
    )


class Tokens:
    """The tokens of a sidecar: `client.tokens`. For operators, of what they are bound to."""

    def __init__(self, run: Callable[[Call[Any]], Any]) -> None:
        self._run = run

    def create(self, name: str, *, role: Role, account: str = "", ttl_s: float) -> NewToken:
        """Makes a token.

        Args:
            name: What people call it: 1 to 64 letters, digits and "._-".
            role: What it allows.
            account: Where: this account and those below it; empty: all.
            ttl_s: How many seconds it is good for; at most 3660 days.

        Raises:
            NotAllowed: The caller is no operator, or not of this account.
        """
        made: NewToken = self._run(_create(name, role=role, account=account, ttl_s=ttl_s))
        return made

    def list(self, account: str = "") -> tuple[Token, ...]:
        """Reads the tokens, the latest first; the last 1,000 that ended for 30 days."""
        found: tuple[Token, ...] = self._run(_list(account))
        return found

    def revoke(self, token_id: str) -> Token:
        """Ends a token, at once; raises TokenNotFound."""
        ended: Token = self._run(_revoke(token_id))
        return ended


class AsyncTokens:
    """As `Tokens`, for an event loop."""

    def __init__(self, run: Callable[[Call[Any]], Awaitable[Any]]) -> None:
        self._run = run

    async def create(self, name: str, *, role: Role, account: str = "", ttl_s: float) -> NewToken:
        """As `Tokens.create`."""
        made: NewToken = await self._run(_create(name, role=role, account=account, ttl_s=ttl_s))
        return made

    async def list(self, account: str = "") -> tuple[Token, ...]:
        """As `Tokens.list`."""
        found: tuple[Token, ...] = await self._run(_list(account))
        return found

    async def revoke(self, token_id: str) -> Token:
        """As `Tokens.revoke`."""
        ended: Token = await self._run(_revoke(token_id))
        return ended
