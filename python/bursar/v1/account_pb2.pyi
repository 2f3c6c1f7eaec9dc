import datetime

from bursar.v1 import ledger_pb2 as _ledger_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Period(_message.Message):
    __slots__ = ("kind", "time_zone", "length")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Period.Kind]
        KIND_TOTAL: _ClassVar[Period.Kind]
        KIND_HOUR: _ClassVar[Period.Kind]
        KIND_DAY: _ClassVar[Period.Kind]
        KIND_WEEK: _ClassVar[Period.Kind]
        KIND_MONTH: _ClassVar[Period.Kind]
        KIND_ROLLING: _ClassVar[Period.Kind]
    KIND_UNSPECIFIED: Period.Kind
    KIND_TOTAL: Period.Kind
    KIND_HOUR: Period.Kind
    KIND_DAY: Period.Kind
    KIND_WEEK: Period.Kind
    KIND_MONTH: Period.Kind
    KIND_ROLLING: Period.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    kind: Period.Kind
    time_zone: str
    length: _duration_pb2.Duration
    def __init__(self, kind: _Optional[_Union[Period.Kind, str]] = ..., time_zone: _Optional[str] = ..., length: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Threshold(_message.Message):
    __slots__ = ("permille", "verdict", "advice")
    PERMILLE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    permille: int
    verdict: _ledger_pb2.Verdict
    advice: _ledger_pb2.Advice
    def __init__(self, permille: _Optional[int] = ..., verdict: _Optional[_Union[_ledger_pb2.Verdict, str]] = ..., advice: _Optional[_Union[_ledger_pb2.Advice, _Mapping]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("account", "unit", "period", "limit", "thresholds")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    account: str
    unit: str
    period: Period
    limit: int
    thresholds: _containers.RepeatedCompositeFieldContainer[Threshold]
    def __init__(self, account: _Optional[str] = ..., unit: _Optional[str] = ..., period: _Optional[_Union[Period, _Mapping]] = ..., limit: _Optional[int] = ..., thresholds: _Optional[_Iterable[_Union[Threshold, _Mapping]]] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("path", "frozen", "stopped", "freeze_reason", "verdict", "balances", "open_reservation_count", "create_time")
    PATH_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    FREEZE_REASON_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    BALANCES_FIELD_NUMBER: _ClassVar[int]
    OPEN_RESERVATION_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    path: str
    frozen: bool
    stopped: bool
    freeze_reason: str
    verdict: _ledger_pb2.Verdict
    balances: _containers.RepeatedCompositeFieldContainer[_ledger_pb2.Balance]
    open_reservation_count: int
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, path: _Optional[str] = ..., frozen: _Optional[bool] = ..., stopped: _Optional[bool] = ..., freeze_reason: _Optional[str] = ..., verdict: _Optional[_Union[_ledger_pb2.Verdict, str]] = ..., balances: _Optional[_Iterable[_Union[_ledger_pb2.Balance, _Mapping]]] = ..., open_reservation_count: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SetBudgetRequest(_message.Message):
    __slots__ = ("budget",)
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    budget: Budget
    def __init__(self, budget: _Optional[_Union[Budget, _Mapping]] = ...) -> None: ...

class SetBudgetResponse(_message.Message):
    __slots__ = ("balance",)
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    balance: _ledger_pb2.Balance
    def __init__(self, balance: _Optional[_Union[_ledger_pb2.Balance, _Mapping]] = ...) -> None: ...

class GetAccountRequest(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...

class GetAccountResponse(_message.Message):
    __slots__ = ("account", "budgets")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    account: Account
    budgets: _containers.RepeatedCompositeFieldContainer[Budget]
    def __init__(self, account: _Optional[_Union[Account, _Mapping]] = ..., budgets: _Optional[_Iterable[_Union[Budget, _Mapping]]] = ...) -> None: ...

class ListAccountsRequest(_message.Message):
    __slots__ = ("account", "page_size", "page_token")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    account: str
    page_size: int
    page_token: str
    def __init__(self, account: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAccountsResponse(_message.Message):
    __slots__ = ("accounts", "next_page_token")
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[Account]
    next_page_token: str
    def __init__(self, accounts: _Optional[_Iterable[_Union[Account, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("account", "reason")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    account: str
    reason: str
    def __init__(self, account: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FreezeResponse(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: Account
    def __init__(self, account: _Optional[_Union[Account, _Mapping]] = ...) -> None: ...

class UnfreezeRequest(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...

class UnfreezeResponse(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: Account
    def __init__(self, account: _Optional[_Union[Account, _Mapping]] = ...) -> None: ...

class RetireAccountRequest(_message.Message):
    __slots__ = ("account",)
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    account: str
    def __init__(self, account: _Optional[str] = ...) -> None: ...

class RetireAccountResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Entry(_message.Message):
    __slots__ = ("sequence", "time", "account", "reservation", "unit", "kind", "amount", "admit_time", "model", "detail")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Entry.Kind]
        KIND_HOLD: _ClassVar[Entry.Kind]
        KIND_RETURN: _ClassVar[Entry.Kind]
        KIND_SPEND: _ClassVar[Entry.Kind]
        KIND_OVERDRAFT: _ClassVar[Entry.Kind]
        KIND_LIMIT: _ClassVar[Entry.Kind]
        KIND_FREEZE: _ClassVar[Entry.Kind]
        KIND_UNFREEZE: _ClassVar[Entry.Kind]
        KIND_CROSSING: _ClassVar[Entry.Kind]
        KIND_CARVE: _ClassVar[Entry.Kind]
        KIND_RUNAWAY: _ClassVar[Entry.Kind]
        KIND_SUCCESS: _ClassVar[Entry.Kind]
        KIND_FAILURE: _ClassVar[Entry.Kind]
        KIND_OPERATED: _ClassVar[Entry.Kind]
    KIND_UNSPECIFIED: Entry.Kind
    KIND_HOLD: Entry.Kind
    KIND_RETURN: Entry.Kind
    KIND_SPEND: Entry.Kind
    KIND_OVERDRAFT: Entry.Kind
    KIND_LIMIT: Entry.Kind
    KIND_FREEZE: Entry.Kind
    KIND_UNFREEZE: Entry.Kind
    KIND_CROSSING: Entry.Kind
    KIND_CARVE: Entry.Kind
    KIND_RUNAWAY: Entry.Kind
    KIND_SUCCESS: Entry.Kind
    KIND_FAILURE: Entry.Kind
    KIND_OPERATED: Entry.Kind
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    ADMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    account: str
    reservation: str
    unit: str
    kind: Entry.Kind
    amount: int
    admit_time: _timestamp_pb2.Timestamp
    model: str
    detail: str
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., account: _Optional[str] = ..., reservation: _Optional[str] = ..., unit: _Optional[str] = ..., kind: _Optional[_Union[Entry.Kind, str]] = ..., amount: _Optional[int] = ..., admit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ListEntriesRequest(_message.Message):
    __slots__ = ("account", "reservation", "unit", "kinds", "start_time", "end_time", "page_size", "page_token")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    account: str
    reservation: str
    unit: str
    kinds: _containers.RepeatedScalarFieldContainer[Entry.Kind]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, account: _Optional[str] = ..., reservation: _Optional[str] = ..., unit: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[Entry.Kind, str]]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEntriesResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchAccountsRequest(_message.Message):
    __slots__ = ("account", "min_interval")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    MIN_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    account: str
    min_interval: _duration_pb2.Duration
    def __init__(self, account: _Optional[str] = ..., min_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchAccountsResponse(_message.Message):
    __slots__ = ("accounts", "retired", "findings")
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[Account]
    retired: _containers.RepeatedScalarFieldContainer[str]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, accounts: _Optional[_Iterable[_Union[Account, _Mapping]]] = ..., retired: _Optional[_Iterable[str]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("time", "account", "rule", "figure", "allowed", "unit", "action")
    TIME_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    FIGURE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    account: str
    rule: str
    figure: int
    allowed: int
    unit: str
    action: str
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., account: _Optional[str] = ..., rule: _Optional[str] = ..., figure: _Optional[int] = ..., allowed: _Optional[int] = ..., unit: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...
