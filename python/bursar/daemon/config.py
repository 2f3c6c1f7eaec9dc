"""The configuration: `bursar.toml` in, the core's JSON out.

Owns what each key means, its default and its bounds. `_accounts` holds the budgets, `_rates` the
rate card, `_runaway` what a runaway is, `_watchdog` the watchdog, `_proxy` the proxy,
`_dashboard` the page, `_metrics` what the sidecar tells of itself, `_envoy` Envoy's rate limit
service, `_listen` what guards a listener, `_receivers` who is told. `_explain` turns what is wrong
into sentences. Relative paths are relative to the configuration file's folder.
"""

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from bursar.daemon._access import AccessSection
from bursar.daemon._accounts import AccountPattern
from bursar.daemon._dashboard import DashboardSection
from bursar.daemon._envoy import EnvoySection
from bursar.daemon._explain import ConfigError, Problem, explain
from bursar.daemon._listen import TlsSection, normalise_tcp, unguarded
from bursar.daemon._metrics import LogSection, MetricsSection
from bursar.daemon._model import Bytes, DurationMs, Section, right
from bursar.daemon._proxy import ProxySection
from bursar.daemon._rates import LIST_PRICES, RateModels, merge_rates, read_rates
from bursar.daemon._receivers import NotifySection
from bursar.daemon._runaway import RunawaySection
from bursar.daemon._watchdog import WatchdogSection

__all__ = ["Config", "ConfigError", "Problem", "load_config"]

# sockaddr_un.sun_path, less its terminating zero and the ".lease" of the lease socket.
SOCKET_PATH_BYTES_MAX = 101
_MODE_MAX = 0o777
_DAY_MS = 86_400_000
_CONFIG_BYTES_MAX = 16 * 2**20


class ServerSection(Section):
    """`[server]`: where the sidecar listens and how much it takes on at once."""

    socket: str | None = Field(
        default="/run/bursar/bursar.sock",
        description="the path of the Unix socket; empty for none",
        json_schema_extra=right('write a path of at most 101 bytes, such as "/run/bursar.sock"'),
    )
    socket_mode: str = Field(
        default="0660",
        description="the permissions of the Unix socket, in octal",
        json_schema_extra=right('write four octal digits in quotes, such as "0660"'),
    )
    tcp: str | None = Field(
        default=None,
        description="an address to listen on as well; TLS and tokens guard what others can reach",
        json_schema_extra=right('write an address and a port, such as "127.0.0.1:7411"'),
    )
    tls: TlsSection | None = Field(default=None, description="TLS for the TCP address")
    max_message_bytes: Bytes = Field(
        default=4 * 2**20 + 64 * 2**10,
        ge=64 * 2**10,
        le=64 * 2**20,
        description="the largest message that is read",
        json_schema_extra=right('write from "64 KiB" to "64 MiB"'),
    )
    max_connections: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="how many connections are open at once; one more is closed",
        json_schema_extra=right("write an integer from 1 to 1_000_000"),
    )
    max_concurrent_calls_per_connection: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="how many calls one connection has under way; more wait",
        json_schema_extra=right("write an integer from 1 to 100_000"),
    )
    runtime_threads: int = Field(
        default=1,
        ge=1,
        le=64,
        description="how many single-threaded runtimes serve connections",
        json_schema_extra=right("write an integer from 1 to 64; 1 is the fastest on few cores"),
    )
    drain_timeout: DurationMs = Field(
        default=10_000,
        ge=0,
        le=600_000,
        description="how long calls under way may take to finish at the end",
        json_schema_extra=right('write from "0s" to "10m"'),
    )

    @field_validator("socket")
    @classmethod
    def _socket(cls, value: str | None) -> str | None:
        if value and len(value.encode()) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(f"the path has {len(value.encode())} bytes")
        return value or None

    @field_validator("socket_mode")
    @classmethod
    def _mode(cls, value: str) -> str:
        if not 1 <= len(value) <= 4 or set(value) - set("01234567") or int(value, 8) > _MODE_MAX:  # noqa: PLR2004 -- four octal digits
            raise ValueError("that is not an octal mode up to 0777")
        return value

    @field_validator("tcp")
    @classmethod
    def _tcp(cls, value: str | None) -> str | None:
        return normalise_tcp(value) if value else None

    @model_validator(mode="after")
    def _listens(self) -> Self:
        if not self.socket and not self.tcp:
            raise ValueError("neither socket nor tcp is set, so nobody could reach the sidecar")
        return self


class StoreSection(Section):
    """`[store]`: where the ledger is kept and what a power cut may take."""

    path: str | None = Field(
        default="/var/lib/bursar/ledger.db",
        description="the SQLite file, its log beside it; empty for memory only",
        json_schema_extra=right('write a path, such as "/var/lib/bursar/ledger.db"'),
    )
    durability: Literal["process", "power", "memory"] = Field(
        default="process",
        description="what an answered call survives: kill -9, a power cut too, or neither",
        json_schema_extra=right('write "process" (kill -9), "power" (a power cut too) or "memory"'),
    )
    entry_retention: DurationMs = Field(
        default=30 * _DAY_MS,
        ge=60_000,
        le=3660 * _DAY_MS,
        description="how long entries and ended reservations are kept",
        json_schema_extra=right('write from "1m" to "3660d"'),
    )
    sync_interval: DurationMs = Field(
        default=10,
        ge=1,
        le=60_000,
        description="how often the log is synced in the background",
        json_schema_extra=right('write from "1ms" to "60s"'),
    )
    min_free_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        le=2**40,
        description="what is to stay free on its disk: below, holds are only ended and lowered",
        json_schema_extra=right("write an integer from 0 to 1_099_511_627_776"),
    )

    @field_validator("path")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return value or None


class LimitsSection(Section):
    """`[limits]`: how many things the sidecar keeps; at a limit it refuses, it never evicts."""

    max_accounts: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="how many accounts exist at once",
        json_schema_extra=right("write an integer from 1 to 10_000_000"),
    )
    max_reservations: int = Field(
        default=2_000_000,
        ge=1,
        le=100_000_000,
        description="how many reservations are pending or remembered for their keys",
        json_schema_extra=right("write an integer from 1 to 100_000_000"),
    )
    max_children: int = Field(
        default=10_000,
        ge=1,
        le=10_000_000,
        description="how many accounts one account has directly below it",
        json_schema_extra=right("write an integer from 1 to 10_000_000"),
    )
    max_leases: int = Field(
        default=10_000,
        ge=0,
        le=30_000,
        description="how many leases on shared memory are open at once",
        json_schema_extra=right("write an integer from 0 to 30_000"),
    )
    account_idle: DurationMs = Field(
        default=3_600_000,
        ge=1_000,
        le=366 * _DAY_MS,
        description="after how long without a call an account without budgets retires",
        json_schema_extra=right('write from "1s" to "366d"'),
    )


class ReservationsSection(Section):
    """`[reservations]`: how long holds and their keys live."""

    default_ttl: DurationMs = Field(
        default=60_000,
        ge=100,
        description="the time to live of a reservation that asks for none",
        json_schema_extra=right('write from "100ms" to max_ttl, such as "60s"'),
    )
    max_ttl: DurationMs = Field(
        default=24 * 3_600_000,
        ge=100,
        le=366 * _DAY_MS,
        description="the longest time to live that may be asked for",
        json_schema_extra=right('write from "100ms" to "366d"'),
    )
    key_retention: DurationMs = Field(
        default=300_000,
        ge=0,
        le=30 * _DAY_MS,
        description="how long an idempotency key outlives its reservation",
        json_schema_extra=right('write from "0s" to "30d"'),
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default_ttl > self.max_ttl:
            raise ValueError("default_ttl is longer than max_ttl")
        return self


class RatesSection(Section):
    """`[rates]`: what models cost."""

    file: str | None = Field(
        default=None,
        description="a TOML file of [[models]] tables, with the keys of [[rates.models]]",
        json_schema_extra=right('write a path, such as "rates.toml"'),
    )
    list_prices: bool = Field(
        default=False,
        description="whether the list prices that come with Bursar count, after the file's",
        json_schema_extra=right("write true or false"),
    )
    allow_unpriced: bool = Field(
        default=False,
        description="whether a model without a price may be used, at no cost",
        json_schema_extra=right("write true or false"),
    )
    models: RateModels = Field(
        default=(),
        description="prices that come before those of the file",
        json_schema_extra=right("write [[rates.models]] tables"),
    )


class Config(Section):
    """The whole configuration, valid."""

    server: ServerSection = Field(default_factory=ServerSection, description="where to listen")
    store: StoreSection = Field(
        default_factory=StoreSection, description="where to keep the ledger"
    )
    limits: LimitsSection = Field(default_factory=LimitsSection, description="bounds")
    reservations: ReservationsSection = Field(
        default_factory=ReservationsSection, description="how long holds live"
    )
    rates: RatesSection = Field(default_factory=RatesSection, description="what models cost")
    watchdog: WatchdogSection = Field(
        default_factory=WatchdogSection, description="how GPUs and jobs are watched"
    )
    access: AccessSection = Field(default_factory=AccessSection, description="who may do what")
    proxy: ProxySection = Field(
        default_factory=ProxySection, description="the endpoint for model calls"
    )
    dashboard: DashboardSection = Field(
        default_factory=DashboardSection, description="the page in a browser"
    )
    metrics: MetricsSection = Field(
        default_factory=MetricsSection, description="the endpoint for Prometheus"
    )
    log: LogSection = Field(default_factory=LogSection, description="how events are written")
    envoy: EnvoySection = Field(
        default_factory=EnvoySection, description="the rate limit service of Envoy"
    )
    runaway: RunawaySection = Field(
        default_factory=RunawaySection, description="what is a runaway, and what follows"
    )
    notify: NotifySection = Field(
        default_factory=NotifySection, description="who is told of what happens"
    )
    accounts: tuple[AccountPattern, ...] = Field(
        default=(),
        strict=False,
        description="which accounts exist, and their budgets",
        json_schema_extra=right("write [[accounts]] tables"),
    )

    @field_validator("accounts")
    @classmethod
    def _distinct(cls, value: tuple[AccountPattern, ...]) -> tuple[AccountPattern, ...]:
        for path, count in Counter(account.path for account in value).items():
            if count > 1:
                raise ValueError(f"{path} is there more than once; put its budgets in one table")
        return value

    @classmethod
    def embedded(cls) -> Self:
        """The configuration of a ledger without a file: in memory, any account, no budgets."""
        return cls(store=StoreSection(path=None), accounts=(AccountPattern(path="**"),))

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, folder: Path | None = None) -> Self:
        """Validates what a TOML file would hold.

        Args:
            data: The tables.
            folder: What relative paths are relative to; None: the working directory.

        Raises:
            ConfigError: With one `Problem` for everything that is wrong.
        """
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(explain(cls, error)) from None
        if problems := unguarded(config):
            raise ConfigError(problems)
        return config.resolved(folder or Path())

    def resolved(self, folder: Path) -> Self:
        """The same configuration with absolute paths and the prices read in."""
        rates = self.rates
        files = [folder / rates.file] if rates.file is not None else []
        files += [LIST_PRICES] if rates.list_prices else []
        models = rates.models
        for file in files:
            models = merge_rates(read_rates(file), models)
        rates = rates.model_copy(update={"models": models, "file": None, "list_prices": False})
        server = self.server
        if server.socket is not None:
            server = server.model_copy(update={"socket": str((folder / server.socket).absolute())})
        if server.tls is not None:
            server = server.model_copy(update={"tls": server.tls.resolved(folder)})
        store = self.store
        # A default stays one: `bursar.open` takes a store only where it was named.
        if store.path is not None and "path" in store.model_fields_set:
            store = store.model_copy(update={"path": str((folder / store.path).absolute())})
        sections = {"rates": rates, "server": server, "store": store}
        sections |= {"proxy": self.proxy.resolved(folder), "notify": self.notify.resolved(folder)}
        return self.model_copy(update=sections)

    def with_overrides(
        self, *, socket: str | Path | None = None, store: str | Path | None = None
    ) -> Self:
        """The same configuration with another socket or another store; None: as it is.

        An empty store is one in memory only, as in the file.
        """
        config = self
        if socket is not None:
            try:
                ServerSection.model_validate({"socket": str(socket)})
            except ValidationError as error:
                raise ConfigError(explain(ServerSection, error)) from None
            server = self.server.model_copy(update={"socket": str(socket)})
            config = config.model_copy(update={"server": server})
        if store is not None:
            kept = self.store.model_copy(update={"path": str(store) or None})
            config = config.model_copy(update={"store": kept})
        return config

    def to_core_json(self, *, listen: bool = True) -> str:
        """Writes what the Rust core reads: integers in base units, no defaults left out.

        Args:
            listen: False for the embedded engine, which has no listeners.
        """
        core: dict[str, Any] = {
            "store": {
                "path": self.store.path,
                "durability": self.store.durability if self.store.path else "memory",
                "entry_retention_s": self.store.entry_retention // 1000,
                "sync_interval_ms": self.store.sync_interval,
                "min_free_bytes": self.store.min_free_bytes,
            },
            "limits": self.limits.model_dump(exclude={"account_idle"}),
            "reservations": {
                "default_ttl_ms": self.reservations.default_ttl,
                "max_ttl_ms": self.reservations.max_ttl,
                "key_retention_ms": self.reservations.key_retention,
            },
            "account_idle_ms": self.limits.account_idle,
            "allow_unpriced": self.rates.allow_unpriced,
            "rates": [model.to_core() for model in self.rates.models],
            "runaway": self.runaway.to_core(),
            "accounts": [account.to_core(self.runaway) for account in self.accounts],
        }
        if listen:
            core["listen"] = self._listen_to_core()
            core["access"] = self.access.to_core()
            if self.proxy.listen is not None:
                core["proxy"] = self.proxy.to_core()
            if self.dashboard.listen is not None:
                core["dashboard"] = self.dashboard.to_core()
            if self.metrics.listen is not None:
                core["metrics"] = self.metrics.model_dump()
            if self.envoy.rules:
                core["envoy"] = self.envoy.model_dump(mode="json")
        return json.dumps(core)

    def _listen_to_core(self) -> dict[str, Any]:
        server = self.server
        return {
            "unix": server.socket,
            "unix_mode": int(server.socket_mode, 8),
            "tcp": server.tcp,
            "tls": server.tls.model_dump() if server.tls else None,
            "max_message_bytes": server.max_message_bytes,
            "max_connections": server.max_connections,
            "max_concurrent_calls_per_connection": server.max_concurrent_calls_per_connection,
            "runtime_threads": server.runtime_threads,
            "drain_timeout_ms": server.drain_timeout,
        }


def load_config(path: str | Path) -> Config:
    """Reads and validates a configuration file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or something in it is wrong.
    """
    file = Path(path)
    return Config.from_dict(read_toml(file), folder=file.parent)


def read_toml(file: Path) -> dict[str, Any]:
    """Reads a TOML file; raises ConfigError where it cannot."""
    try:
        if file.stat().st_size > _CONFIG_BYTES_MAX:
            raise ConfigError([Problem("", f"{file} is larger than {_CONFIG_BYTES_MAX} bytes")])
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Problem("", f"{file} cannot be read: {error.strerror}")]) from None
    except ValueError as error:  # also for a number of thousands of digits
        raise ConfigError([Problem("", f"{file} is not TOML: {error}")]) from None
    except RecursionError:
        raise ConfigError([Problem("", f"{file} is nested too deep; write flat tables")]) from None
