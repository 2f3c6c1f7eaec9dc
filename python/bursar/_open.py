"""The three ways in: `connect`, `connect_async` and `open`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bursar._away import JOURNAL_VARIABLE, FailOpen, Patience
from bursar._transport import Retry
from bursar.aio import AsyncClient
from bursar.client import Client

if TYPE_CHECKING:
    from bursar._tls import Tls
    from bursar.daemon.config import Config

TIMEOUT_S: Final = 5.0
ATTEMPTS: Final = 6  # together some 2 s of patience: a restart of the sidecar goes unnoticed


def _patience(
    target: str,
    *,
    timeout_s: float,
    token: str | None,
    tls: "Tls | None",
    when_away: FailOpen | None,
    journal: str | Path | None,
) -> Patience:
    from bursar._grpc import GrpcTransport

    once = Retry(attempts=1)
    folder = os.environ.get(JOURNAL_VARIABLE) if journal is None else journal
    return Patience(
        target,
        when_away=when_away,
        journal=Path(folder) if folder else None,
        connect=lambda: GrpcTransport(
            target, timeout_s=timeout_s, retry=once, token=token, tls=tls
        ),
    )


def connect(
    target: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    token: str | None = None,
    when_away: FailOpen | None = None,
    journal: str | Path | None = None,
    tls: "Tls | None" = None,
) -> Client:
    """Makes a client of a sidecar. Connects at the first call, not here.

    Args:
        target: ``unix:/run/bursar/bursar.sock``, a bare socket path, or ``host:port``. None: the
            environment variable BURSAR_TARGET, else ``unix:/run/bursar/bursar.sock``.
        timeout_s: The deadline of each call in seconds, its repeats included.
        attempts: How often a call is sent at most while no sidecar answers.
        token: What the client shows; None: the environment variable BURSAR_TOKEN, else nothing. It
            is sent to this host, or by TLS.
        when_away: What may be spent while no sidecar answers; None: nothing.
        journal: A folder where commits, releases and records are kept until they are answered; the
            next client of the same sidecar and token sends what one that died has left. None: the
            environment variable BURSAR_JOURNAL, else they are kept in memory, while this client is
            open.
        tls: How a sidecar is reached by TLS at ``host:port``. None: what the environment variables
            BURSAR_TLS_CA ("system" for the system's authorities), BURSAR_TLS_CERTIFICATE and
            BURSAR_TLS_KEY say, else without.
    """
    from bursar._grpc import GrpcTransport, resolve_target

    chosen = resolve_target(target)
    retry = Retry(attempts=attempts)
    transport = GrpcTransport(chosen, timeout_s=timeout_s, retry=retry, token=token, tls=tls)
    patience = _patience(
        chosen, timeout_s=timeout_s, token=token, tls=tls, when_away=when_away, journal=journal
    )
    return Client(transport, patience)


def connect_async(
    target: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    token: str | None = None,
    when_away: FailOpen | None = None,
    journal: str | Path | None = None,
    tls: "Tls | None" = None,
) -> AsyncClient:
    """Makes an asynchronous client of a sidecar; arguments as in `connect`."""
    from bursar._grpc import AsyncGrpcTransport, resolve_target

    chosen = resolve_target(target)
    transport = AsyncGrpcTransport(
        chosen, timeout_s=timeout_s, retry=Retry(attempts=attempts), token=token, tls=tls
    )
    patience = _patience(
        chosen, timeout_s=timeout_s, token=token, tls=tls, when_away=when_away, journal=journal
    )
    return AsyncClient(transport, patience)


def open(  # noqa: A001 -- always called as bursar.open
    path: str | Path | None = None, *, config: "Config | str | Path | None" = None
) -> Client:
    """Opens a ledger in this process, without a sidecar.

    Without a configuration every account is accepted, and budgets are those that `set_budget` made.

    Args:
        path: The store's SQLite file; its log lies beside it. Made where it is missing. None: the
            one that the configuration names, else memory only. The daemon's own default is never
            used: whoever wants the daemon's ledger in this process names it.
        config: A configuration, or the path of its TOML file. Its listeners are ignored.

    Raises:
        ConfigError: The configuration is wrong.
        StoreUnavailable: The store cannot be opened, or another process has it open.
    """
    from bursar._embedded import EmbeddedTransport, open_engine
    from bursar.daemon.config import Config, load_config

    if config is None:
        chosen = Config.embedded()
    else:
        chosen = config if isinstance(config, Config) else load_config(config)
    if path is None and "path" not in chosen.store.model_fields_set:
        path = ""
    if path is not None:
        chosen = chosen.with_overrides(store=path)
    return Client(EmbeddedTransport(open_engine(chosen.to_core_json(listen=False))))
