"""`bursar health`: one question to the sidecar's health service, for probes."""

import sys
from typing import Final

import click

from bursar.cli._shared import EXIT_ERROR, target_option
from bursar.exceptions import SidecarUnavailable

_SERVICE: Final = "bursar.v1.LedgerService"


@click.command(short_help="Ask whether the sidecar grants.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True, max=60),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take to answer.",
)
@target_option
def health(timeout_s: float, target: str | None) -> None:
    """Say whether the sidecar answers, and grants: for probes, which look at the exit code.

    Exits with 0 when it does, with 1 when its store has failed, so that it only reads until it is
    restarted, and with 4 when it does not answer. Needs no token.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from bursar._grpc import dialler, resolve_target, unanswered
    from bursar._tls import credentials

    address = resolve_target(target)
    with dialler(address, credentials(address, None, shows_token=False))() as channel:
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise SidecarUnavailable(unanswered(address, error.details() or "")) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        click.echo("bursar: its store has failed: it only reads until it is restarted", err=True)
        sys.exit(EXIT_ERROR)
    click.echo("it grants")
