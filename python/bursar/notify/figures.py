"""How it stands with each receiver, as OpenMetrics text for the daemon's page. Pure."""

from collections.abc import Callable, Iterable

from bursar._openmetrics import Samples, family
from bursar.notify.spool import Standing

__all__ = ["exposition"]


def exposition(standings: Iterable[Standing]) -> str:
    """Writes the families, without their end."""
    found = tuple(standings)

    def each(value: Callable[[Standing], int]) -> Samples:
        return [({"receiver": one.name}, value(one)) for one in found]

    families = (
        family(
            "bursar_receiver_waiting",
            "Events that a receiver of notifications is still to be told.",
            each(lambda one: one.waiting),
        ),
        family(
            "bursar_receiver_told",
            "Events that it was told.",
            each(lambda one: one.told),
            kind="counter",
        ),
        family(
            "bursar_receiver_lost",
            "Events that it never will be told.",
            each(lambda one: one.lost),
            kind="counter",
        ),
        family(
            "bursar_receiver_failures",
            "Attempts in a row that have failed.",
            each(lambda one: one.failures),
        ),
        family(
            "bursar_receiver_gone",
            "Whether it has said that it wants nothing any more.",
            each(lambda one: int(one.is_gone)),
        ),
    )
    return "\n".join([*families, ""])
