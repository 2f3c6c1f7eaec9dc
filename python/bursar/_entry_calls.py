"""The call that lists entries, as `_calls` has the others. No I/O."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bursar import _convert as convert
from bursar import models
from bursar._calls import Call, Page, _sendable
from bursar.v1 import account_pb2 as ac

ENTRIES_PAGE_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries to list; what is left empty lets everything through."""

    account: str = ""
    reservation: str = ""
    unit: str = ""
    kinds: tuple[models.EntryKind, ...] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None


def entry_filter(
    account: str,
    *,
    reservation: str,
    unit: str,
    kinds: Iterable[models.EntryKind | str],
    start_time: datetime | None,
    end_time: datetime | None,
) -> EntryFilter:
    """Builds a filter; refuses a kind that does not exist."""
    try:
        known = tuple(models.EntryKind(kind) for kind in kinds)
    except ValueError as error:
        right = ", ".join(models.EntryKind)
        raise convert.invalid(f"{error}; one of {right}", field="kinds") from error
    return EntryFilter(account, reservation, unit, known, start_time, end_time)


@_sendable
def list_entries(
    wanted: EntryFilter, *, page_size: int, page_token: str = ""
) -> Call[Page[models.Entry]]:
    """AccountService/ListEntries, one page."""
    request = ac.ListEntriesRequest(
        account=wanted.account,
        reservation=wanted.reservation,
        unit=wanted.unit,
        kinds=[f"KIND_{kind.name}" for kind in wanted.kinds],
        start_time=convert.timestamp(wanted.start_time, field="start_time"),
        end_time=convert.timestamp(wanted.end_time, field="end_time"),
        page_size=page_size,
        page_token=page_token,
    )
    return Call(
        "AccountService/ListEntries",
        request,
        ac.ListEntriesResponse,
        lambda answer: Page(
            tuple(convert.entry(one) for one in answer.entries), answer.next_page_token
        ),
    )
